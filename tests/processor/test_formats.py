"""What bytes are: one reader for each format that is read, and a name and a way out for every other."""

import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.hostile_pictures import EPS, chunk, icns, icon, iptc, png, segment, tiff
from helpers.paths import ROOT
from helpers.pictures import PICTURE, loaded, refusal, saved
from PIL import Image

from pg_mlx.processor.formats import FORMATS, RAW_SUFFIXES, format_of

SUFFIXES = ("png", "jpg", "gif", "tif", "webp", "bmp", "ico", "heic", "avif", "jp2", "ppm", "eps")


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.eps", data)
    return file.getvalue()


def wrapped(eps: bytes) -> dict[str, bytes]:
    """PostScript in everything that a reader may open or look behind."""
    tags = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 5), 262: (3, 1, 1), 273: (4, 1, -1)}
    tags |= {277: (3, 1, 1), 278: (4, 1, 8), 279: (4, 1, len(eps))}
    return {f"renamed.{suffix}": eps for suffix in SUFFIXES} | {
        "dos.eps": b"\xc5\xd0\xd3\xc6" + len(eps).to_bytes(4, "little") * 7 + eps,
        "white.eps": b"\n\n " + eps,
        "iptc.iim": iptc(eps),
        "iptc.jpg": iptc(eps, 3, 0),
        "twice.iim": iptc(iptc(eps)),
        "icon.ico": icon(eps),
        "icon.icns": icns(eps),
        "page.tif": tiff(tags, eps),
        "text.png": png(1, 1, b"\0\0", extra=chunk(b"tEXt", b"eps\0" + eps)),
        "comment.jpg": saved(PICTURE, "JPEG")[:2] + segment(0xFE, eps) + saved(PICTURE, "JPEG")[2:],
        "thumbnail.jpg": saved(PICTURE, "JPEG")[:2] + segment(0xED, b"Photoshop 3.0\x008BIM" + eps),
        "archive.zip": zipped(eps),
        "photoshop.psd": b"8BPS\0\1" + eps,
        "ole.fpx": bytes.fromhex("d0cf11e0a1b11ae1") + b"\0" * 500 + eps,
        "metafile.wmf": b"\xd7\xcd\xc6\x9a\0\0" + eps,
        "box.heic": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + eps,
        "box.avif": b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + eps,
        "box.jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + eps,
        "riff.webp": b"RIFF" + len(eps).to_bytes(4, "little") + b"WEBP" + eps,
        "frame.gif": b"GIF89a\1\0\1\0\0\0\0!\xfe" + bytes((len(eps),)) + eps + b"\0;",
    }


def test_ghostscript_never_runs(tmp_path: Path) -> None:
    """64 wrapped or renamed files, each by path, as bytes and as an open file; then Pillow itself, which runs it."""
    programs, files, ran = tmp_path / "bin", tmp_path / "files", tmp_path / "ran"
    programs.mkdir()
    files.mkdir()
    for name in ("gs", "gswin64c", "gswin32c"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (programs / name).chmod(stat.S_IRWXU)
    looping = EPS.replace(b"1 0 0 setrgbcolor", b"{} loop")
    for number, eps in enumerate((EPS, looping)):
        for name, data in wrapped(eps).items():
            (files / f"{number}-{name}").write_bytes(data)
    code = """
import io, json, os, sys
from pathlib import Path
from PIL import Image
from pg_mlx import InputError
from pg_mlx.processor import load_image
folder, ran = Path(sys.argv[1]), Path(sys.argv[2])
tried = []
for path in sorted(folder.iterdir()):
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        try:
            load_image(source)
        except InputError:
            pass
    tried.append(path.name)
    if ran.exists():
        break
before = ran.exists()
try:
    Image.open(folder / "0-renamed.eps").load()
except Exception:
    pass
print(json.dumps([len(tried), before, ran.exists(), tried[-1]]))
"""
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(files), str(ran)], env=environment, capture_output=True, text=True, check=False
    )
    tried, ran_before, ran_by_pillow, last = json.loads(done.stdout)
    assert not ran_before, last
    assert tried >= 60
    assert ran_by_pillow, done.stderr  # the test can fail


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Pillow's, about formats that it will drop
def test_only_the_formats_of_the_list_are_read() -> None:
    """Every format that Pillow writes, read back or refused."""
    Image.init()
    read = set()
    for kind in Image.SAVE:
        try:
            data = saved(Image.new("RGB", (8, 8)), kind)
        except Exception:
            continue
        try:
            loaded(data)
        except Exception as error:
            assert "is" in str(error), kind
        else:
            read.add(kind)
    assert read <= {*FORMATS, "DIB", "JFIF"}
    assert {"PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "JPEG2000"} <= read


@pytest.mark.parametrize(
    "data, word, way_out",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "HTML", "address of the picture"),
        (b"\xef\xbb\xbf\n <html lang=de>", "HTML", "address of the picture"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG", "PNG"),
        (b"<svg width='1'/>", "SVG", "PNG"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML", "error"),
        (b'{"error": "not found"}', "JSON", "error"),
        (b"%PDF-1.7\n", "PDF", "pdftoppm"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL", "PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "PNG"),
        (b"8BPS\0\1" + b"\0" * 30, "Photoshop", "PNG"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "film", "ffmpeg"),
        (b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", "film", "ffmpeg"),
        (b"\x1aE\xdf\xa3\x01", "film", "ffmpeg"),
        (b"RIFF\0\0\0\0AVI LIST", "film", "ffmpeg"),
        (b"PK\3\4\x14\0", "archive", "unpack"),
        (b"\x1f\x8b\x08\0", "archive", "unpack"),
        (b"a" + b"\0" * 256 + b"ustar\x0000", "archive", "unpack"),
        (b"qoif\0\0\0\1", "QOI", "PNG"),
        (b"\0\x05\x16\x07\0\2\0\0Mac OS X", "macOS", "._"),
        (b"FUJIFILMCCD-RAW 0201", "camera raw", "export"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "camera raw", "export"),
        (b"II\x1a\0\0\0HEAPCCDR", "camera raw", "export"),
    ],
)
def test_what_is_no_picture_is_named_with_a_way_out(data: bytes, word: str, way_out: str) -> None:
    message = refusal(data, "the picture's bytes")
    assert word in message and way_out in message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "PPM", "JPEG2000", "AVIF"])
def test_the_first_bytes_decide_not_the_name(tmp_path: Path, kind: str) -> None:
    data = saved(PICTURE, kind)
    assert format_of(data, "it") == kind
    path = tmp_path / "picture.eps"
    path.write_bytes(data)
    assert loaded(path).shape == PICTURE.shape


# --- camera raw files -----------------------------------------------------------------------------------

THUMBNAIL = {254: (4, 1, 1), 256: (4, 1, 4), 257: (4, 1, 1), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)} | {
    273: (4, 1, 8),
    277: (3, 1, 1),
    278: (4, 1, 1),
    279: (4, 1, 4),
}


def test_raw_files_are_refused_by_what_is_in_them() -> None:
    """NEF and ARW: the sensor's picture lies below a thumbnail; DNG says what it is; CR2 too; PEF is one itself."""
    size = len(tiff(THUMBNAIL | {330: (4, 1, 0)}))
    sensor = tiff({256: (4, 1, 4), 257: (4, 1, 4), 262: (3, 1, 32803)})[8:]
    below = tiff(THUMBNAIL | {330: (4, 1, size)}) + sensor
    kept_away = tiff(THUMBNAIL | {330: (4, 1, size)}) + tiff({256: (4, 1, 4)})[8:]
    dng = tiff(THUMBNAIL | {50706: (1, 4, 0x0401)})
    compressed = tiff({**THUMBNAIL, 254: (4, 1, 0), 259: (3, 1, 34713)})
    itself = tiff({**THUMBNAIL, 254: (4, 1, 0), 262: (3, 1, 32803)})
    for data in (below, kept_away, dng, compressed, itself):
        assert "camera raw" in refusal(data)
    plain = tiff({**THUMBNAIL, 254: (4, 1, 0)})
    assert loaded(plain).shape == (1, 4, 3)


@pytest.mark.parametrize("suffix", [".NEF", ".arw", ".dng", ".pef"])
def test_raw_files_are_refused_by_their_names(tmp_path: Path, suffix: str) -> None:
    assert suffix.lower() in RAW_SUFFIXES
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(saved(PICTURE, "TIFF"))
    assert "camera raw" in refusal(path, path.name)
    path.write_bytes(saved(PICTURE, "PNG"))  # whoever renames a PNG still has a PNG
    assert loaded(path).shape == PICTURE.shape
