"""What bytes are: one of the formats that are read, or something else that is refused by its name.

Pictures come from strangers, and Pillow has more than forty readers, one of which starts another program. So the first
bytes decide which reader is used, and no other can be reached.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from ..errors import InputError

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "ICO", "PPM")
"""Pillow's names of what is read. An MPO begins as a JPEG and is found out later."""

RAW_SUFFIXES = {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".k25", ".kdc", ".mef"}
RAW_SUFFIXES |= {
    ".mos",
    ".mrw",
    ".nef",
    ".nrw",
    ".orf",
    ".pef",
    ".raf",
    ".raw",
    ".rw2",
    ".rwl",
    ".sr2",
    ".srf",
    ".srw",
    ".x3f",
}
"""How makers of cameras call their raw files."""

PICTURE_SUFFIXES = {
    ".png",
    ".apng",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".webp",
    ".gif",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
}
PICTURE_SUFFIXES |= {
    ".avif",
    ".avifs",
    ".heic",
    ".heics",
    ".heif",
    ".heifs",
    ".hif",
    ".jp2",
    ".j2k",
    ".jpc",
    ".jpf",
    ".jpx",
    ".j2c",
}
PICTURE_SUFFIXES |= {".ico", ".pbm", ".pgm", ".ppm", ".pnm"}
"""What files of the formats that are read are called; a folder's other files are no pictures."""

_SAVE = "save it as JPEG or PNG"
_RAW = "is a camera raw file, which is not developed here; export it as JPEG or PNG"
_FILM = "is a film, not a picture; save a frame of it as PNG, as `ffmpeg -i FILM -frames:v 1 frame.png` does"
_ARCHIVE = "is an archive; unpack it and name a picture in it"

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\0\0\1\0", "ICO"),
)
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the picture itself; `git lfs pull` fetches that"),
    (b"%PDF", f"is a PDF; {_SAVE} a page of it, as `pdftoppm -png -r 150` does"),
    (b"%!PS", f"is PostScript, which is not read; {_SAVE}"),
    (b"\xc5\xd0\xd3\xc6", f"is PostScript, which is not read; {_SAVE}"),
    (b"\xff\x0a", f"is JPEG XL, which is not read; {_SAVE}, as `djxl` does"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", f"is JPEG XL, which is not read; {_SAVE}, as `djxl` does"),
    (b"8BPS", f"is a Photoshop document; {_SAVE}"),
    (b"8BPB", f"is a Photoshop document; {_SAVE}"),
    (b"gimp xcf", f"is a GIMP document; {_SAVE}"),
    (b"icns", f"is a Mac icon; {_SAVE}, as `sips -s format png` does"),
    (b"qoif", f"is QOI, which is not read; {_SAVE}"),
    (b"DDS ", f"is a DDS texture; {_SAVE}"),
    (b"v/1\x01", f"is OpenEXR, which is not read; {_SAVE}"),
    (b"#?RADIANCE", f"is Radiance HDR, which is not read; {_SAVE}"),
    (b"SIMPLE  =", f"is FITS, which is not read; {_SAVE}"),
    (b"\xd7\xcd\xc6\x9a", f"is a Windows metafile; {_SAVE}"),
    (b"/* XPM */", f"is XPM, which is not read; {_SAVE}"),
    (b"P7\n", f"is PAM, which is not read; {_SAVE}"),
    (b"\x93NUMPY", "is a NumPy array; give the array itself in Python, np.load(...)"),
    (b"\x89HDF", "is an HDF5 file, not a picture"),
    (
        b"\0\x05\x16\x07",
        "holds only what macOS notes about another file; the picture is the one without ._ before its name",
    ),
    (b"bplist00", "is a property list, not a picture"),
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"IIRO", _RAW),
    (b"IIRS", _RAW),
    (b"MMOR", _RAW),
    (b"IIU\0", _RAW),
    (b"II\x1a\0\0\0HEAPCCDR", _RAW),
    (b"FOVb", _RAW),
    (b"\0MRM", _RAW),
    (b"PK\3\4", _ARCHIVE),
    (b"PK\5\6", _ARCHIVE),
    (b"\x1f\x8b", _ARCHIVE),
    (b"Rar!", _ARCHIVE),
    (b"7z\xbc\xaf", _ARCHIVE),
    (b"\xfd7zXZ", _ARCHIVE),
    (b"BZh", _ARCHIVE),
    (b"\x28\xb5\x2f\xfd", _ARCHIVE),
    (b"\x1aE\xdf\xa3", _FILM),
    (b"OggS", _FILM),
    (b"FLV\1", _FILM),
    (b"\0\0\1\xba", _FILM),
    (b"\0\0\1\xb3", _FILM),
    (b"0&\xb2u\x8ef\xcf\x11", _FILM),
)
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2", b"miaf"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_PNM = re.compile(rb"P[1-6][\s#]|P[fF][\s]")
_TEXT_BYTES = 512


def format_of(data: bytes, name: str) -> str:
    """Which of FORMATS these bytes are, by their first ones.

    name: how messages call the picture. Raises InputError, which says what they are if not one of those.
    """
    if not data:
        raise InputError(f"{name} is empty")
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _brand(data, name)
    if _PNM.match(data):
        return "PPM"
    raise InputError(f"{name} {_other(data)}")


def refuse_raw_name(name: str, kind: str) -> None:
    """Raises InputError for a TIFF whose name is a camera's raw file: its first picture is a thumbnail."""
    path = PurePath(name.partition("#")[0].partition("?")[0])
    if kind == "TIFF" and path.suffix.lower() in RAW_SUFFIXES:
        raise InputError(f"{name} {_RAW}")


def raw_picture(name: str) -> InputError:
    """The error for a TIFF that holds what a sensor saw."""
    return InputError(f"{name} {_RAW}")


def _brand(data: bytes, name: str) -> str:
    """AVIF or HEIF, of what lies in the boxes of ISO 14496-12. Raises InputError for films and raw files."""
    length = min(max(int.from_bytes(data[:4], "big"), 16), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, length, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    if brands & _HEIF_BRANDS:
        return "HEIF"
    raise InputError(f"{name} {_RAW if data[8:12] == b'crx ' else _FILM}")


def _other(data: bytes) -> str:
    """What bytes are that are not read, as the end of a sentence."""
    for magic, said in _OTHERS:
        if data.startswith(magic):
            return said
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return _FILM
    if data[257:262] == b"ustar":
        return _ARCHIVE
    if data[128:132] == b"DICM":
        return f"is a DICOM file, which is not read; {_SAVE}"
    start = data[:_TEXT_BYTES].removeprefix(b"\xef\xbb\xbf").replace(b"\0", b"").lstrip().lower()
    if start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in start):
        return "is an SVG drawing; save it as PNG, as `rsvg-convert` does"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")) or b"<html" in start:
        return "is a web page (HTML), not a picture; give the address of the picture itself"
    if start.startswith((b"<?xml", b"<error")):
        return "is XML, not a picture; a server may have answered with an error instead"
    if start.startswith((b"{", b"[")):
        return "is JSON, not a picture; a server may have answered with an error instead"
    if start.startswith(b"data:"):
        return "is the text of a data URI; give that text itself, not the bytes of a file that holds it"
    return (
        "is not a picture in a format that is read (PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000, ICO, PPM)"
    )
