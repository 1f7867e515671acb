"""Pictures in all kinds of files, a server that has some, and what load_image says of them."""

from __future__ import annotations

import http.server
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pg_mlx.errors import InputError
from pg_mlx.processor.images import load_image

# No two pixels alike, no symmetry, so that a turned, mirrored or shifted picture is another one.
PICTURE = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3) * 2
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG file of this size without any pixels in it."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT", b"IEND")
    parts = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def loaded(source: Any) -> np.ndarray:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(source: Any, name: str = "the picture") -> str:
    """What load_image says: one line, with this name in it."""
    with pytest.raises(InputError) as caught:
        load_image(source)
    message = str(caught.value)
    assert name in message
    assert len(message.splitlines()) == 1
    return message


@contextmanager
def picture_server() -> Iterator[str]:
    """The address of a server with a few good and many bad answers."""
    good = saved(PICTURE)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/nonsense":
                self.wfile.write(b"this is no HTTP\r\n\r\n")
                return
            status = {"/good.png": 200, "/short.png": 200, "/text": 200, "/moved": 301, "/to-file": 302}
            status |= {"/to-ftp": 302, "/caf%C3%A9%201.png": 200}
            self.send_response(status.get(self.path, 404))
            if self.path == "/moved":
                self.send_header("Location", "/good.png")
            if self.path == "/to-file":
                self.send_header("Location", "file:///etc/passwd")
            if self.path == "/to-ftp":
                self.send_header("Location", "ftp://127.0.0.1/a.png")
            body = {
                "/good.png": good,
                "/caf%C3%A9%201.png": good,
                "/short.png": good[:-40],
                "/text": b"<html>no picture</html>",
            }.get(self.path, b"")
            self.send_header("Content-Length", str(len(good) if self.path == "/short.png" else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("no_proxy", "*")
            yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


CORRUPT = (3, 50, 51, 120, 199)
"""Numbers of those that are, in a folder of 200 pictures."""
