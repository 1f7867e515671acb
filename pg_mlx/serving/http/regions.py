"""/v1/regions: boxes and masks, without a conversation around them. JSON or a form with files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from ...errors import InputError
from ...generation import SamplingOptions
from ...regions.export import malformed_to_json, to_json
from ...regions.select import RegionFilter
from ..service.limits import Limits
from ..service.requests import Answered
from .chat import usage
from .errors import bad_request
from .schemas import Fields, sampling


@dataclass(frozen=True)
class RegionsRequest:
    model: str | None
    prompt: str
    named: list[tuple[str, str]]
    """Place in the request, and data URI, address or file."""
    options: SamplingOptions
    scores: bool
    constrain: bool
    kept: RegionFilter
    """Which regions of the answer are returned."""

    @property
    def enough(self) -> int | None:
        """As RegionFilter.enough."""
        return self.kept.enough(self.constrain, self.scores)


def read(value: Any, text: bool = False) -> RegionsRequest:
    """text: of a form. Raises APIError."""
    fields = Fields(value, text=text)
    named = list[tuple[str, str]]()
    if (image := fields.take("image")) is not None:
        named = [(place, item) for place, item in Fields({"image": [image]}).items("image")]
        if fields.take("images") is not None:
            raise bad_request("there are both image and images", "images")
    elif not text:
        named = list(fields.items("images"))
    for place, item in named:
        if not isinstance(item, str):
            raise bad_request(f"{place} must be a string", place)
    try:
        kept = RegionFilter(
            min_score=fields.number("min_score", 0, 1),
            dedup_iou=fields.number("dedup_iou", 0, 1),
            max_regions=fields.integer("max_regions", 1, 1_000_000),
        )
    except InputError as error:
        raise bad_request(str(error)) from None
    request = RegionsRequest(
        model=fields.string("model", "") or None,
        prompt=fields.string("prompt"),
        named=named,
        options=sampling(fields),
        scores=fields.boolean("scores") or kept.min_score is not None,
        constrain=fields.boolean("constrain"),
        kept=kept,
    )
    fields.without({}, frozenset())
    return request


async def read_form(headers: Headers, body: bytes, limits: Limits) -> tuple[RegionsRequest, list[bytes]]:
    """The request and its pictures, which are the files of the form. Raises APIError."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

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
            elif name in fields or name == "image":
                raise bad_request(f"{name[:100]!r} is given twice, or is no file", name[:100])
            else:
                fields[name] = value
    finally:
        await form.close()
    if not pictures:
        raise bad_request("there is no picture: send one as a file called image", "image")
    return read(fields, text=True), pictures


def answer(request: RegionsRequest, done: Answered, model: str) -> dict[str, Any]:
    """As `pg-mlx generate --format json` tells it."""
    generation, (width, height) = done.generation, done.image_size
    return {
        "object": "regions",
        "model": model,
        "width": width,
        "height": height,
        "text": generation.text,
        "regions": [to_json(region) for region in request.kept.select(generation.regions)],
        "malformed": [malformed_to_json(malformed) for malformed in generation.malformed],
        "finish_reason": generation.finish_reason,
        "usage": usage(generation),
    }
