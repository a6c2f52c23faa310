#!/usr/bin/env python3
"""As much of Google Cloud Storage's XML API as an archive uses, in memory, for scripts/backup-stores.

Written from the public reference of that API: it shows that requests and answers are understood as they are documented, not
that Google's servers keep their promises. Listens on 127.0.0.1 only; prints the port once it is ready.

Usage: gcs_stub.py [--ignore-preconditions]      with it, objects are replaced although the request says "only if absent"
"""

import email.utils
import hashlib
import re
import sys
import threading
import time
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

PAGE = 1000
BUCKET = "bucket"

objects = {}  # name -> (bytes, generation, time)
uploads = {}  # id -> (name, {part number -> bytes})
lock = threading.Lock()
ignore_preconditions = "--ignore-preconditions" in sys.argv[1:]


def etag(content):
    return '"' + hashlib.md5(content).hexdigest() + '"'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name == "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status, code, message):
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self.answer(status, body.encode(), [("Content-Type", "application/xml")])

    def target(self):
        """Name and query, or None if it was answered."""
        path, _, query = self.path.partition("?")
        bucket, _, name = path.lstrip("/").partition("/")
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if bucket != BUCKET:
            self.fail(404, "NoSuchBucket", "The specified bucket does not exist.")
            return None
        return urllib.parse.unquote(name), dict(urllib.parse.parse_qsl(query, keep_blank_values=True))

    def describe(self, entry):
        content, generation, at = entry
        return [
            ("ETag", etag(content)),
            ("x-goog-generation", str(generation)),
            ("Last-Modified", email.utils.formatdate(at, usegmt=True)),
        ]

    def do_PUT(self):
        found = self.target()
        if found is None:
            return
        name, query = found
        if "uploadId" in query:
            with lock:
                if query["uploadId"] not in uploads:
                    return self.fail(404, "NoSuchUpload", "The upload does not exist.")
                uploads[query["uploadId"]][1][int(query["partNumber"])] = self.content
            return self.answer(200, headers=[("ETag", etag(self.content))])
        with lock:
            wanted = self.headers.get("x-goog-if-generation-match")
            current = objects[name][1] if name in objects else 0
            if wanted is not None and int(wanted) != current and not ignore_preconditions:
                return self.fail(412, "PreconditionFailed", "At least one of the pre-conditions did not hold.")
            objects[name] = (self.content, time.time_ns() // 1000, time.time())
            headers = self.describe(objects[name])
        self.answer(200, headers=headers)

    def do_POST(self):
        found = self.target()
        if found is None:
            return
        name, query = found
        if "uploads" in query:
            with lock:
                upload = uuid.uuid4().hex
                uploads[upload] = (name, {})
            body = (
                f"<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{escape(name)}</Key>"
                f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            )
            return self.answer(200, body.encode())
        with lock:
            upload = uploads.pop(query.get("uploadId", ""), None)
            if upload is None:
                return self.fail(404, "NoSuchUpload", "The upload does not exist.")
            numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", self.content)]
            content = b"".join(upload[1][number] for number in numbers)
            objects[name] = (content, time.time_ns() // 1000, time.time())
        body = (
            f"<CompleteMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{escape(name)}</Key>"
            f"<ETag>{escape(etag(content))}</ETag></CompleteMultipartUploadResult>"
        )
        self.answer(200, body.encode(), self.describe(objects[name])[:2])

    def do_DELETE(self):
        found = self.target()
        if found is None:
            return
        name, query = found
        with lock:
            if "uploadId" in query:
                gone = uploads.pop(query["uploadId"], None)
            else:
                gone = objects.pop(name, None)
        if gone is None:
            return self.fail(404, "NoSuchKey", "The specified key does not exist.")
        self.answer(204)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        found = self.target()
        if found is None:
            return
        name, query = found
        if not name:
            return self.listing(query)
        with lock:
            entry = objects.get(name)
        if entry is None:
            return self.fail(404, "NoSuchKey", "The specified key does not exist.")
        content, status, headers = entry[0], 200, self.describe(entry)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            begin, end = int(asked[1]), int(asked[2] or len(content) - 1)
            headers.append(("Content-Range", f"bytes {begin}-{end}/{len(content)}"))
            content, status = content[begin : end + 1], 206
        self.answer(status, content, headers + [("Content-Length", str(len(content)))])

    def listing(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        contents, folders, more, last = [], [], False, ""
        with lock:
            for name in sorted(objects):
                if not name.startswith(prefix) or name <= after:
                    continue
                if len(contents) + len(folders) == PAGE:
                    more = True
                    break
                rest = name[len(prefix) :]
                if delimiter and delimiter in rest:
                    folder = prefix + rest.split(delimiter)[0] + delimiter
                    if after.startswith(folder):
                        continue
                    if folder not in folders:
                        folders.append(folder)
                else:
                    contents.append((name, objects[name]))
                last = name
        body = ["<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>", f"<Name>{BUCKET}</Name>"]
        if more:
            body.append(f"<NextContinuationToken>{escape(last)}</NextContinuationToken>")
        for name, (content, _, at) in contents:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at))
            body.append(
                f"<Contents><Key>{escape(name)}</Key><LastModified>{stamp}</LastModified>"
                f"<ETag>{escape(etag(content))}</ETag><Size>{len(content)}</Size></Contents>"
            )
        body += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders]
        body.append("</ListBucketResult>")
        self.answer(200, "".join(body).encode(), [("Content-Type", "application/xml")])


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
