#!/usr/bin/env python3
"""As much of Azure's Blob REST API as an archive uses, in memory, for scripts/backup-stores where Azurite is not to be had.

Written from the public reference of that API: it shows that requests, their signatures and answers are understood as they are
documented, not that Microsoft's servers keep their promises. Listens on 127.0.0.1 only; prints the port once it is ready.

Usage: azure_stub.py
"""

import base64
import hashlib
import hmac
import re
import sys
import threading
import time
import urllib.parse
import uuid
from xml.sax.saxutils import escape

sys.dont_write_bytecode = True
from store_stub import StoreHandler, http_date, page, serve  # noqa: E402

CONTAINER = "bucket"
ACCOUNT = "devstoreaccount1"
# The key that every emulator has, as Microsoft's documentation prints it.
KEY = base64.b64decode("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==")
SIGNED = [
    "Content-Encoding",
    "Content-Language",
    "Content-Length",
    "Content-MD5",
    "Content-Type",
    "Date",
    "If-Modified-Since",
    "If-Match",
    "If-None-Match",
    "If-Unmodified-Since",
    "Range",
]

blobs = {}  # name -> (bytes, etag, time)
blocks = {}  # name -> {block id -> bytes}
lock = threading.Lock()


class Handler(StoreHandler):
    error_header = "x-ms-error-code"

    def is_signed(self, path, query):
        """Whether the request carries the signature that "Authorize with Shared Key" describes."""
        values = [self.headers.get(name) or "" for name in SIGNED]
        if values[2] == "0":
            values[2] = ""
        own = sorted((name.lower(), value.strip()) for name, value in self.headers.items() if name.lower().startswith("x-ms-"))
        lines = [self.command, *values, *(f"{name}:{value}" for name, value in own)]
        resource = f"/{ACCOUNT}{path}" + "".join(f"\n{name.lower()}:{value}" for name, value in sorted(query.items()))
        text = "\n".join([*lines, resource])
        signature = base64.b64encode(hmac.new(KEY, text.encode(), hashlib.sha256).digest()).decode()
        return self.headers.get("Authorization") == f"SharedKey {ACCOUNT}:{signature}"

    def target(self):
        """Name and query, or None if it was answered."""
        path, _, query = self.path.partition("?")
        query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.is_signed(path, query):
            self.fail(403, "AuthenticationFailed", "Server failed to authenticate the request.")
            return None
        account, _, rest = path.lstrip("/").partition("/")
        container, _, name = rest.partition("/")
        if account != ACCOUNT or container != CONTAINER:
            self.fail(404, "ContainerNotFound", "The specified container does not exist.")
            return None
        return urllib.parse.unquote(name), query

    def describe(self, blob):
        return [("ETag", blob[1]), ("Last-Modified", http_date(blob[2]))]

    def do_PUT(self):
        found = self.target()
        if found is None:
            return
        name, query = found
        if query.get("comp") == "block":
            with lock:
                blocks.setdefault(name, {})[query["blockid"]] = self.content
            return self.answer(201)
        with lock:
            if self.headers.get("If-None-Match") == "*" and name in blobs:
                return self.fail(409, "BlobAlreadyExists", "The specified blob already exists.")
            content = self.content
            if query.get("comp") == "blocklist":
                ids = re.findall(r"<(?:Uncommitted|Latest|Committed)>([^<]+)<", self.content.decode())
                there = blocks.pop(name, {})
                if any(block not in there for block in ids):
                    return self.fail(400, "InvalidBlockList", "The specified block list is invalid.")
                content = b"".join(there[block] for block in ids)
            elif self.headers.get("x-ms-blob-type") != "BlockBlob":
                return self.fail(400, "MissingRequiredHeader", "x-ms-blob-type is missing.")
            blobs[name] = (content, f'"0x{uuid.uuid4().hex[:15].upper()}"', time.time())
            headers = self.describe(blobs[name])
        self.answer(201, headers=headers)

    def do_POST(self):
        """A batch of deletes."""
        found = self.target()
        if found is None:
            return
        parts = re.findall(r"Content-ID: (\d+)\r\n(?:[^\r]+\r\n)*\r\nDELETE (\S+) HTTP", self.content.decode(), re.I)
        boundary = f"batchresponse_{uuid.uuid4()}"
        body = ""
        for number, path in parts:
            name = urllib.parse.unquote(path.split("?")[0].lstrip("/").split(f"{CONTAINER}/", 1)[-1])
            with lock:
                gone = blobs.pop(name, None)
            status = "202 Accepted" if gone else "404 The specified blob does not exist."
            body += f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
            body += f"HTTP/1.1 {status}\r\nx-ms-version: 2018-11-09\r\n\r\n"
        body += f"--{boundary}--\r\n"
        self.answer(202, body.encode(), [("Content-Type", f"multipart/mixed; boundary={boundary}")])

    def do_GET(self):
        found = self.target()
        if found is None:
            return
        name, query = found
        if query.get("comp") == "list":
            return self.listing(query)
        with lock:
            blob = blobs.get(name)
        if blob is None:
            return self.fail(404, "BlobNotFound", "The specified blob does not exist.")
        asked = self.headers.get("x-ms-range") or self.headers.get("Range")
        self.answer_part(blob[0], asked, [*self.describe(blob), ("x-ms-blob-type", "BlockBlob")])

    def listing(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        # Both begin with what they name.
        begin = query.get("marker") or query.get("startFrom", "")
        with lock:
            names, folders, _, more = page(blobs, prefix, delimiter, lambda name: name < begin)
            found = [(name, blobs[name]) for name in names]
        body = ["<?xml version='1.0' encoding='utf-8'?><EnumerationResults><Blobs>"]
        for name, (content, tag, at) in found:
            body.append(
                f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{http_date(at)}"
                f"</Last-Modified><Etag>{escape(tag)}</Etag><Content-Length>{len(content)}</Content-Length>"
                "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            )
        body += [f"<BlobPrefix><Name>{escape(folder)}</Name></BlobPrefix>" for folder in folders]
        body.append(f"</Blobs><NextMarker>{escape(more)}</NextMarker></EnumerationResults>")
        self.answer(200, "".join(body).encode(), [("Content-Type", "application/xml")])


if __name__ == "__main__":
    serve(Handler)
