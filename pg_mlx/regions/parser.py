"""From the text of an answer to regions. A record is <loc>x4, perhaps <seg>x16, and a label; " ; " separates records.

The text comes from a model, so it can be anything. What begins like a record but is not exactly one is reported as
malformed. Text between records is ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from operator import index

from ..errors import InputError
from .region import LAST_LOCATION, Malformed, Region

LOCATIONS_PER_BOX, CODES_PER_MASK = 4, 16
"""Numbers of <loc> and <seg> tokens in a record."""
LAST_CODE = 127

_ATOM = re.compile(r"<(?:loc(?P<loc>\d{4})|seg(?P<seg>\d{3}))>|(?P<end>[;\n])", re.ASCII)
_BEGUN = re.compile(r"<(?:l(?:o(?:c\d{0,4})?)?|s(?:e(?:g\d{0,3})?)?)?\Z", re.ASCII)
"""The first letters of a region token, at the end of what has come so far."""


@dataclass
class _Group:
    """Region tokens one after the other, and the label after them."""

    locations: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Where each token begins in the text."""
    stop: int = 0
    """Where the last token, or the label without the space behind it, ends."""
    text: str = ""
    label: str = ""


class RegionParser:
    """Regions of an answer that comes in pieces, cut anywhere.

    Each region is returned once it is complete, that is when its label ends: at a separator, at the next record, or at
    the end. Records that are malformed are in `malformed`. Raises InputError if image_size is not two positive sizes.
    """

    def __init__(self, image_size: tuple[int, int]):
        """image_size: width and height of the picture in pixels, after it was turned as its EXIF says."""
        self.malformed: list[Malformed] = []
        self._size = _checked_size(image_size)
        self._pending = ""
        self._position = 0
        self._group: _Group | None = None

    def push(self, text: str) -> list[Region]:
        """The regions that became complete with this text."""
        text = self._pending + text
        begun = _BEGUN.search(text)
        cut = begun.start() if begun else len(text)
        self._pending = text[cut:]
        return self._read(text[:cut])

    def flush(self) -> list[Region]:
        """The region that ended with the text, if one did."""
        text, self._pending = self._pending, ""
        return [*self._read(text), *self._close()]

    def _read(self, text: str) -> list[Region]:
        regions: list[Region] = []
        done = 0
        for atom in _ATOM.finditer(text):
            self._plain(text[done : atom.start()])
            done = atom.end()
            if atom["end"]:
                regions += self._close()
            else:
                regions += self._token(atom)
            self._position += len(atom[0])
        self._plain(text[done:])
        return regions

    def _token(self, atom: re.Match[str]) -> list[Region]:
        group, regions = self._group, list[Region]()
        # Behind a label, or behind codes, a location can only begin the next record.
        if group and (group.label or (group.codes and atom["loc"])):
            regions = self._close()
        group = self._group = self._group or _Group()
        group.starts.append(self._position)
        group.stop = self._position + len(atom[0])
        group.text += atom[0]
        if atom["loc"]:
            group.locations.append(int(atom["loc"]))
        else:
            group.codes.append(int(atom["seg"]))
        return regions

    def _plain(self, text: str) -> None:
        """Text that is neither token nor separator: a label's if a record came before it; space alone joins tokens."""
        group = self._group
        if group and (group.label or text.strip()):
            group.label = (group.label + text).lstrip()
            group.stop = self._position + len(text.rstrip()) if text.strip() else group.stop
        if group:
            group.text += text
        self._position += len(text)

    def _close(self) -> list[Region]:
        """The records of the group, all but the last without a label: <loc>x8 are two boxes."""
        group, self._group = self._group, None
        if group is None:
            return []
        if reason := _fault(group):
            self._report(group, (group.starts[0], group.stop), reason)
            return []
        regions = []
        count = len(group.locations) // LOCATIONS_PER_BOX
        for number in range(count):
            first, behind = number * LOCATIONS_PER_BOX, (number + 1) * LOCATIONS_PER_BOX
            last = number == count - 1
            span = group.starts[first], group.stop if last else group.starts[behind]
            y0, x0, y1, x1 = group.locations[first:behind]
            if y1 <= y0 or x1 <= x0:
                self._report(group, span, f"the box is empty or inverted: y {y0} to {y1}, x {x0} to {x1}")
                continue
            region = Region(
                label=group.label.strip() if last else "",
                locations=(y0, x0, y1, x1),
                image_size=self._size,
                codes=tuple(group.codes) if last and group.codes else None,
                span=span,
            )
            regions.append(region)
        return regions

    def _report(self, group: _Group, span: tuple[int, int], reason: str) -> None:
        start, stop = (position - group.starts[0] for position in span)
        self.malformed.append(Malformed(group.text[start:stop], reason, span))


def _checked_size(image_size: tuple[int, int]) -> tuple[int, int]:
    try:
        width, height = map(index, image_size)
    except (TypeError, ValueError):
        width = height = 0
    if min(width, height) < 1:
        raise InputError(f"image_size is {image_size!r}; it must be the picture's width and height in pixels")
    return width, height


def _fault(group: _Group) -> str | None:
    locations, codes = len(group.locations), len(group.codes)
    if locations == 0:
        return f"{codes} <seg> without a box before them"
    if locations % LOCATIONS_PER_BOX:
        return f"{locations} <loc>, where a box has {LOCATIONS_PER_BOX}"
    if codes not in (0, CODES_PER_MASK):
        return f"{codes} <seg>, where a mask has {CODES_PER_MASK}"
    if max(group.locations) > LAST_LOCATION:
        return f"<loc{max(group.locations):04}> is beyond <loc{LAST_LOCATION}>"
    if max(group.codes, default=0) > LAST_CODE:
        return f"<seg{max(group.codes):03}> is beyond <seg{LAST_CODE}>"
    return None


def parse_regions(text: str, image_size: tuple[int, int]) -> list[Region]:
    """The regions of a whole answer, in its order. Use RegionParser to get the malformed records too.

    image_size: width and height of the picture in pixels, after it was turned as its EXIF says. Raises InputError if it
    is not two positive sizes.
    """
    parser = RegionParser(image_size)
    return [*parser.push(text), *parser.flush()]
