"""A web server that leaks a megabyte with each of its own requests, ten a second."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.request import urlopen

leak: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        leak.append(b'x' * 2 ** 20)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f'{len(leak)} MB\n'.encode())

    def log_message(self, *args: object) -> None:
        """Log nothing."""


def ask(url: str) -> None:
    while True:
        urlopen(url).read()
        time.sleep(0.1)


if __name__ == '__main__':
    server = HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=ask, args=(f'http://127.0.0.1:{server.server_port}/',),
                     daemon=True).start()
    server.serve_forever()
