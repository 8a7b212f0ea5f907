"""A file server on the loopback interface that can resume, break off, and refuse."""

import http.server
import threading
from typing import Any


class RangeServer:
    """Serves bytes by path, with ``Range`` unless told otherwise.

    Args:
        files: Content by path.

    Attributes:
        breaks: How many bytes of a body to send before the connection is cut, one entry for each of the next answers.
        ranges: Whether ranges are honoured.
        lengths: Whether the length is told.
        status: Answered instead of 200, where set.
        asked: Path and ``Range`` header of every request.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.breaks: list[int] = []
        self.ranges = True
        self.lengths = True
        self.status: int | None = None
        self.asked: list[tuple[str, str | None]] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def url(self, path: str) -> str:
        """Address of a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def __enter__(self) -> "RangeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(server: RangeServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.asked.append((self.path, wanted))
            content = server.files.get(self.path)
            if server.status is not None or content is None:
                self.send_error(server.status or 404)
                return
            start = 0
            if wanted is not None and server.ranges:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            body = content[start:]
            if server.lengths:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)
            self.close_connection = True

        def log_message(self, format: str, *_: Any) -> None:
            pass

    return Handler
