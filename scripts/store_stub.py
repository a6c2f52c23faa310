"""What the stand-ins for object stores share: an HTTP server on loopback that answers with XML. No script of its own."""

import email.utils
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# So many names are in one answer at most.
PAGE = 1000


class StoreHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The header that repeats the code of an error, if the store has one.
    error_header = None

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
            try:
                self.wfile.write(body)
            except ConnectionError:
                # Who reads far enough to know leaves.
                self.close_connection = True

    def fail(self, status, code, message):
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        headers = [("Content-Type", "application/xml")]
        if self.error_header:
            headers.append((self.error_header, code))
        self.answer(status, body.encode(), headers)

    def answer_part(self, content, asked, headers):
        """The content, or as much of it as a header asks for."""
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", asked or ""):
            begin, end = int(asked[1]), int(asked[2] or len(content) - 1)
            headers = [*headers, ("Content-Range", f"bytes {begin}-{min(end, len(content) - 1)}/{len(content)}")]
            content, status = content[begin : end + 1], 206
        self.answer(status, content, [*headers, ("Content-Length", str(len(content)))])

    def do_HEAD(self):
        self.do_GET()


def http_date(at):
    return email.utils.formatdate(at, usegmt=True)


def page(names, prefix, delimiter, is_passed, is_folder_passed=lambda folder: False):
    """One page of a listing: names, folders, the last name it covers, and the first one behind it ("": none)."""
    found, folders, last = [], [], ""
    for name in sorted(names):
        if not name.startswith(prefix) or is_passed(name):
            continue
        if len(found) + len(folders) == PAGE:
            return found, folders, last, name
        rest = name[len(prefix) :]
        if delimiter and delimiter in rest:
            folder = prefix + rest.split(delimiter)[0] + delimiter
            if is_folder_passed(folder):
                continue
            if folder not in folders:
                folders.append(folder)
        else:
            found.append(name)
        last = name
    return found, folders, last, ""


def serve(handler):
    """Prints the port, and answers until it is ended."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
