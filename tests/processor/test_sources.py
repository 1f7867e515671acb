"""Pictures named as people name them: paths, addresses, data URIs; and what messages repeat of them."""

import base64
import http.server
import ssl
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.pictures import PICTURE, loaded, refusal, saved

from pg_mlx.errors import InputError, TooLarge
from pg_mlx.processor.download import tls_context, without_secrets
from pg_mlx.processor.images import load_image
from pg_mlx.processor.sources import decode_data_uri, shown

DATA = saved(PICTURE)
PLAIN = base64.b64encode(DATA).decode()
HEAD = "data:image/png;base64,"

# --- paths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stored, typed",
    [
        ("Screenshot 2026-08-10 at 9.22.20\u202fPM.png", "Screenshot 2026-08-10 at 9.22.20 PM.png"),
        ("Capture d’écran 10\u00a0h.png", "Capture d'écran 10 h.png"),
        (unicodedata.normalize("NFD", "Übergröße.png"), unicodedata.normalize("NFC", "Übergröße.png")),
        (unicodedata.normalize("NFC", "café.png"), unicodedata.normalize("NFD", "café.png")),
    ],
)
def test_names_that_look_the_same_are_the_same(tmp_path: Path, stored: str, typed: str) -> None:
    folder = tmp_path / unicodedata.normalize("NFD", "Büro\u00a01")
    folder.mkdir()
    (folder / stored).write_bytes(DATA)
    for name in (folder / typed, tmp_path / "Büro 1" / typed, str(tmp_path / "Büro 1" / typed)):
        np.testing.assert_array_equal(loaded(name), PICTURE)


def test_the_very_name_goes_before_one_that_looks_the_same(tmp_path: Path) -> None:
    (tmp_path / "a\u202fb.png").write_bytes(b"no picture")
    (tmp_path / "a b.png").write_bytes(DATA)
    np.testing.assert_array_equal(loaded(tmp_path / "a b.png"), PICTURE)
    (tmp_path / "a\u00a0c.png").write_bytes(DATA)
    (tmp_path / "a\u202fc.png").write_bytes(DATA)
    assert "no such picture" in refusal(tmp_path / "a c.png", "a c.png")  # which of the two was meant?
    assert "no such picture" in refusal(tmp_path / "ab.png", "ab.png")


def test_paths_of_other_types() -> None:
    class Named:
        def __init__(self, path: str | bytes) -> None:
            self.path = path

        def __fspath__(self) -> str | bytes:
            return self.path

    path = ROOT / "pg_mlx/demo/scene.png"
    expected = loaded(path)
    np.testing.assert_array_equal(loaded(Named(str(path))), expected)
    np.testing.assert_array_equal(loaded(Named(str(path).encode())), expected)

    class Torn:
        def __fspath__(self) -> str:
            raise RuntimeError("torn")

    assert "torn" in refusal(Torn(), "Torn")


def test_file_addresses_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a café 100%?.png"
    path.write_bytes(DATA)
    for address in (f"file://{quote(str(path))}", f"file://localhost{quote(str(path))}", f"FILE:{quote(str(path))}"):
        np.testing.assert_array_equal(loaded(address), PICTURE)
    assert "another machine" in refusal("file://server/share/a.png", "file://server/share/a.png")
    refusal("file:///no/such/picture.png", "file:///no/such/picture.png")
    monkeypatch.chdir(tmp_path)
    for name in ("file:a.png", "http:a.png", "data a.png", "12:30.png"):  # names with colons are names
        Path(name).write_bytes(DATA)
        np.testing.assert_array_equal(loaded(name), PICTURE)


# --- data URIs ------------------------------------------------------------------------------------------

SPELLINGS = {
    "plain": HEAD + PLAIN,
    "line breaks": HEAD + base64.encodebytes(DATA).decode(),
    "Windows' line breaks": HEAD + base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
    "a line break at the end": HEAD + PLAIN + "\n",
    "no padding": HEAD + PLAIN.rstrip("="),
    "URL-safe": HEAD + base64.urlsafe_b64encode(DATA).decode(),
    "URL-safe without padding": HEAD + base64.urlsafe_b64encode(DATA).decode().rstrip("="),
    "percent-encoded": HEAD + quote(PLAIN, safe=""),
    "percent-encoded bytes": "data:image/png," + quote(DATA, safe=""),
    "capitals": "DATA:IMAGE/PNG;BASE64," + PLAIN,
    "no type": "data:;base64," + PLAIN,
    "parameters": "data:image/png;name=a.png;charset=utf-8;base64," + PLAIN,
    "spaces": "data:image/png; base64, " + PLAIN,
    "bare": PLAIN,
    "bare with line breaks": base64.encodebytes(DATA).decode(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_data_uri_is_read(spelling: str) -> None:
    text = SPELLINGS[spelling]
    np.testing.assert_array_equal(loaded(text), PICTURE)
    if text[:4].lower() == "data":
        assert decode_data_uri(text, 10_000) == DATA


@pytest.mark.parametrize("text", [HEAD + PLAIN[:9], HEAD + "****", HEAD + "a=b=", "data:image/png;base64" + "x" * 9])
def test_what_is_no_data_uri_is_refused(text: str) -> None:
    refusal(text, "the data URI (image/png")
    with pytest.raises(InputError):
        decode_data_uri(text, 10_000)


def test_data_uris_are_bounded() -> None:
    assert decode_data_uri(HEAD + PLAIN, len(DATA)) == DATA
    with pytest.raises(TooLarge):
        decode_data_uri(HEAD + PLAIN, len(DATA) - 1)
    with pytest.raises(TooLarge):
        decode_data_uri(HEAD + "A" * 100_000, 10)


def test_messages_are_bounded(tmp_path: Path) -> None:
    noise = base64.b64encode(bytes(range(256)) * 500).decode()
    assert len(refusal(HEAD + noise, "the data URI (image/png, ")) < 400
    assert len(refusal("x" * 100_000, "xxx")) < 600
    assert len(refusal(f"http://127.0.0.1:1/{'y' * 100_000}", "yyy")) < 800
    assert shown("a.png") == "a.png"
    for long in (
        "http://u:secret" + "s" * 100_000 + "@h/a.png",
        "http://h/?" + "token" * 50_000,
        "http://" + "?" * 100_000,
    ):
        assert len(shown(long)) <= 400 and "secret" not in shown(long)


# --- addresses ------------------------------------------------------------------------------------------


@contextmanager
def server(seen: list[tuple[str, str | None]], location: str | None = None) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(302 if location and self.path == "/moved" else 200)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA)

        def log_message(self, *_: object) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def test_a_password_goes_to_its_own_server_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    seen, elsewhere = list[tuple[str, str | None]](), list[tuple[str, str | None]]()
    with server(elsewhere) as other, server(seen, f"http://{other}/there") as host:
        np.testing.assert_array_equal(loaded(f"http://user:pa%20ss@{host}/moved"), PICTURE)
        np.testing.assert_array_equal(loaded(f"http://{host}/a b#fragment"), PICTURE)
    assert seen[0] == ("/moved", "Basic " + base64.b64encode(b"user:pa ss").decode())
    assert elsewhere == [("/there", None)]
    assert seen[1] == ("/a%20b", None)


def test_messages_keep_passwords_and_keys_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    for address in (
        "http://user:secret@127.0.0.1:1/x.png",
        "http://user:secret@127.0.0.1:port/x.png",
        "https://user:secret@nowhere.invalid/x.png",
        "ftp://user:secret@127.0.0.1/x.png",
        "http://127.0.0.1:1/x.png?X-Amz-Signature=secret&a=b",
        "http://127.0.0.1:1/x.png?token=secret",
        "http://user:secret@h\u2100st/x.png",
        "http://user:secret@[1/x.png",
    ):
        assert "secret" not in refusal(address, "/x.png")
    assert without_secrets("http://h/a@2x.png?page=2") == "http://h/a@2x.png?page=2"


def test_host_names_of_other_letters_are_looked_up_as_idna(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(address: tuple[str, int], *_: object, **__: object) -> None:
        asked.append(address[0])
        raise OSError("not today")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("socket.create_connection", refuse)
    refusal("http://bücher.example/ü.png", "bücher.example")
    refusal("http://例え.jp:8080/ü.png", "例え.jp")
    assert asked == ["xn--bcher-kva.example", "xn--r8jz45g.jp"]
    refusal(f"http://{'ü' * 70}.example/a.png", "example")  # a part of a name may have 63 letters


# --- certificates ---------------------------------------------------------------------------------------


def trusted(tmp_path: Path, **environment: str) -> int:
    code = "from pg_mlx.processor.download import tls_context; print(tls_context().cert_store_stats()['x509_ca'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_certificates_are_certifis_where_the_system_has_none(tmp_path: Path) -> None:
    certifi = pytest.importorskip("certifi")
    missing = {"SSL_CERT_FILE": str(tmp_path / "none.pem"), "SSL_CERT_DIR": str(tmp_path / "none")}
    assert trusted(tmp_path, **missing) == len(ssl.create_default_context(cafile=certifi.where()).get_ca_certs())
    empty = tmp_path / "empty"
    empty.mkdir()
    assert trusted(tmp_path, SSL_CERT_FILE=str(tmp_path / "none.pem"), SSL_CERT_DIR=str(empty)) > 0


def test_a_store_of_ones_own_is_not_widened(tmp_path: Path) -> None:
    certifi = pytest.importorskip("certifi")
    one = Path(certifi.where()).read_text(encoding="utf-8")
    begin, end = one.index("-----BEGIN"), one.index("-----END CERTIFICATE-----") + 26
    (tmp_path / "own.pem").write_text(one[begin:end], encoding="utf-8")
    assert trusted(tmp_path, SSL_CERT_FILE=str(tmp_path / "own.pem"), SSL_CERT_DIR=str(tmp_path / "none")) == 1
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "abcdef01.0").write_text(one[begin:end], encoding="utf-8")
    assert trusted(tmp_path, SSL_CERT_FILE=str(tmp_path / "none.pem"), SSL_CERT_DIR=str(folder)) == 0
    assert tls_context().verify_mode == ssl.CERT_REQUIRED


def test_a_generator_is_no_picture() -> None:
    with pytest.raises(InputError, match="generator"):
        load_image(path for path in ["a.png"])
