#!/usr/bin/env python3
"""As much of Google Cloud Storage's XML API as an archive uses, in memory, for scripts/backup-stores.

Written from the public reference of that API: it shows that requests and answers are understood as they are documented, not
that Google's servers keep their promises. Listens on 127.0.0.1 only; prints the port once it is ready.

Usage: gcs_stub.py [--ignore-preconditions]      with it, objects are replaced although the request says "only if absent"
"""

import hashlib
import re
import sys
import threading
import time
import urllib.parse
import uuid
from xml.sax.saxutils import escape

sys.dont_write_bytecode = True
from store_stub import StoreHandler, http_date, page, serve  # noqa: E402

BUCKET = "bucket"

objects = {}  # name -> (bytes, generation, time)
uploads = {}  # id -> (name, {part number -> bytes})
lock = threading.Lock()
ignore_preconditions = "--ignore-preconditions" in sys.argv[1:]


def etag(content):
    return '"' + hashlib.md5(content).hexdigest() + '"'


class Handler(StoreHandler):
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
            ("Last-Modified", http_date(at)),
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
        self.answer_part(entry[0], self.headers.get("Range"), self.describe(entry))

    def listing(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        with lock:
            names, folders, last, more = page(objects, prefix, delimiter, lambda name: name <= after, after.startswith)
            contents = [(name, objects[name]) for name in names]
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
    serve(Handler)
