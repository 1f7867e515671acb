"""A font for the script of a label: Pillow's own for Latin, else one of the system's."""

from __future__ import annotations

import functools
import unicodedata

from PIL import ImageFont, features

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "Arial Unicode.ttf",  # every macOS has it
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "Hiragino Sans GB.ttc",
    "PingFang.ttc",
    "AppleSDGothicNeo.ttc",
    "msyh.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Kohinoor.ttc",
    "NotoSansDevanagari-Regular.ttf",
    "GeezaPro.ttc",
    "NotoSansArabic-Regular.ttf",
    "ArialHB.ttc",
    "Thonburi.ttc",
    "FreeSans.ttf",
    "FreeSerif.ttf",
)
"""File names; Pillow knows in which folders systems keep them."""

_UNASSIGNED = "\U0010ffff"  # not a character, so every font draws its sign for missing ones


def font_for(text: str, size: int) -> Font | None:
    """The first font that has every character of the text; None if there is none, or if the text cannot be laid out.

    size: in pixels. Right-to-left scripts and others whose letters join need Pillow's "raqm"; without it the letters
    would stand alone and in the wrong order.
    """
    text = "".join(text.split())
    if not _has_raqm() and any(_needs_layout(character) for character in text):
        return None
    for name in (None, *SYSTEM_FONTS):
        if all(_covers(name, character) for character in set(text)):
            return _load(name, size)
    return None


@functools.lru_cache(maxsize=64)
def _load(name: str | None, size: int) -> Font | None:
    if name is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _covers(name: str | None, character: str) -> bool:
    """Whether the font has the character. Pillow cannot say, so its image is compared with that of a missing one."""
    font = _load(name, 32)
    if font is None:
        return False
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):  # marks on the letter before, and invisible ones
        return True
    picture, missing = font.getmask(character), font.getmask(_UNASSIGNED)
    return bool(picture.getbbox()) and (picture.size, bytes(picture)) != (missing.size, bytes(missing))


@functools.cache
def _has_raqm() -> bool:
    return bool(features.check("raqm"))


def _needs_layout(character: str) -> bool:
    return unicodedata.bidirectional(character) in ("R", "AL") or unicodedata.category(character) == "Mc"
