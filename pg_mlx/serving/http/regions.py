"""/v1/regions: boxes and masks without a conversation around them. The request is JSON, or a form with files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from msgspec import UNSET
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from ...regions.export import malformed_to_json
from ...regions.select import RegionFilter
from ..service.limits import Limits
from ..service.requests import Answered
from ..structs import Malformed, given
from .body import check, parse
from .chat import regions_of, usage
from .errors import APIError, bad_request
from .events import in_thread
from .schemas import Regions, RegionsRequest


def check_regions(value: Any) -> RegionsRequest:
    """The regions request that a parsed body is. Raises APIError."""
    asked = check(value, RegionsRequest)
    if (asked.image is UNSET) == (asked.images is UNSET):
        raise bad_request("there must be either image or images", "image" if asked.image is UNSET else "images")
    return asked


def named_images(asked: RegionsRequest) -> list[tuple[str, str]]:
    """The place of each picture in the request, and its name: data URI, address or file."""
    if asked.image is not UNSET:
        return [("image", asked.image)]
    return [(f"images[{index}]", image) for index, image in enumerate(asked.images or ())]


def kept(asked: RegionsRequest) -> RegionFilter:
    """Which regions of the answer are returned."""
    return RegionFilter(**given(asked, "min_score", "dedup_iou", "max_regions"))


def enough(asked: RegionsRequest) -> int | None:
    """As RegionFilter.enough."""
    return kept(asked).enough(asked.constrain, wants_scores(asked))


def wants_scores(asked: RegionsRequest) -> bool:
    """Whether scores have to be computed."""
    return asked.scores or asked.min_score is not UNSET


async def read_form(headers: Headers, body: bytes, limits: Limits) -> tuple[RegionsRequest, list[bytes]]:
    """The request and its pictures, which are the files of the form. Raises APIError."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), _AT_ONCE):
            yield body[start : start + _AT_ONCE]
            await asyncio.sleep(0)

    parser = MultiPartParser(
        headers, chunks(), max_files=limits.pictures, max_fields=20, max_part_size=len(body)  # type: ignore[arg-type]
    )  # fmt: skip
    parser.spool_max_size = len(body) + 1  # it is in memory already
    try:
        form = await parser.parse()
    except Exception as error:  # parsers raise whatever they stumble over
        raise bad_request(f"the form cannot be read ({type(error).__name__})") from None
    pictures, fields = list[bytes](), dict[str, str]()
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in ("image", "images"):
                    raise bad_request(f"a file is called {name[:100]!r}, but must be called image", name[:100])
                pictures.append(await value.read())
            elif name in fields or name in ("image", "images"):
                raise bad_request(f"{name[:100]!r} is given twice, or is no file", name[:100])
            else:
                fields[name] = value
    finally:
        await form.close()
    if not pictures:
        raise bad_request("there is no picture: send one as a file called image", "image")
    return await in_thread(_check_form, fields), pictures


_AT_ONCE = 1 << 18
"""Bytes of a form that are parsed before others have their turn; at worst it takes 50 ns for each."""
_TEXTS = frozenset({"model", "prompt"})


def _check_form(fields: dict[str, str]) -> RegionsRequest:
    """The request that the fields of a form are. Raises APIError."""
    values = {name: text if name in _TEXTS else _value(text) for name, text in fields.items()}
    return check({name: value for name, value in values.items() if value is not None}, RegionsRequest)


def _value(text: str) -> Any:
    """A field of a form that is no text, written as in JSON. What is no JSON stays text, which is then refused."""
    try:
        return parse(text.encode())
    except (APIError, UnicodeEncodeError):
        return text


def answer(request: RegionsRequest, done: Answered, model: str) -> Regions:
    """The answer, with the regions that the request asks for. model: its name, as clients call it."""
    generation, (width, height) = done.generation, done.image_size
    return Regions(
        model=model,
        width=width,
        height=height,
        text=generation.text,
        regions=regions_of(kept(request).select(generation.regions)),
        malformed=[Malformed(**malformed_to_json(malformed)) for malformed in generation.malformed],
        finish_reason=generation.finish_reason,  # type: ignore[arg-type]  # never cancelled
        usage=usage(generation),
    )
