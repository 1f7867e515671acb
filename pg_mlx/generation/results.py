"""The results of generation: a Step for each token, and the Generation at the end."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError
from ..memory.size import format_size
from ..regions import Malformed, Region
from .asked import AskedImage

if TYPE_CHECKING:
    from PIL import Image

FinishReason = Literal["stop", "length", "cancelled"]

_SHOWN = 24
"""Answers of a list that a notebook shows."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability: a natural logarithm, before penalties, temperature and truncation, among the
    tokens that a constrained answer allowed."""

    token_id: int
    text: str
    """The text of this token alone. U+FFFD stands for bytes that are no character without their neighbours."""
    bytes: bytes | None
    """Its part of the answer in UTF-8; None for a token that is not part of any text, as <eos>."""
    logprob: float | None
    """None for a token that a constrained answer had to have, so that nothing was chosen."""
    alternatives: Sequence[TokenLogprob] = ()
    """The likeliest tokens at this place, the likeliest first, whether chosen or not; as many as were asked for, or
    fewer if a constrained answer allowed fewer. They have no alternatives of their own."""

    def to_json(self) -> dict[str, Any]:
        """An item of `logprobs.content` in OpenAI's form. A token that had to come has the log-probability 0."""
        return {**self._entry(), "top_logprobs": [other._entry() for other in self.alternatives]}

    def _entry(self) -> dict[str, Any]:
        data = None if self.bytes is None else list(self.bytes)
        return {"token": self.text, "logprob": self.logprob or 0.0, "bytes": data}


@dataclass(frozen=True)
class Stats:
    """Where the time went, in seconds, and what was held, in bytes."""

    load_s: float
    """Reading the checkpoint, before this generation."""
    vision_s: float
    """SigLIP and connector, without the decoding and resizing of pictures."""
    prefill_s: float
    """Image tokens and prompt through the decoder, up to the first token."""
    time_to_first_token_s: float
    """From the call to the first token, with everything but loading."""
    prompt_tokens: int
    """Image tokens and prompt tokens."""
    prefill_tps: float
    """prompt_tokens a second of prefill_s."""
    decode_tokens: int
    """Tokens of the answer, <eos> included."""
    decode_tps: float
    """Tokens a second, without the first one, which prefill made."""
    peak_memory_bytes: int
    """The most bytes that MLX has held since the process started, loading included."""

    def summary(self) -> str:
        """One line: how long each stage took, and the most memory that was held."""
        parts = [
            f"load {self.load_s:.2f} s",
            f"vision {self.vision_s:.2f} s",
            f"prefill {self.prefill_s:.2f} s ({self.prompt_tokens} tokens, {self.prefill_tps:.0f}/s)",
            f"first token {self.time_to_first_token_s:.2f} s",
        ]
        if self.decode_tokens > 1:
            parts.append(f"{self.decode_tokens} tokens at {self.decode_tps:.1f}/s")
        return " | ".join([*parts, f"peak {format_size(self.peak_memory_bytes)}"])


@dataclass(frozen=True)
class Generation:
    """A finished answer. token_ids hold neither <eos> nor tokens whose text begins after the beginning of a stop
    string."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: Stats
    regions: list[Region] = field(default_factory=list)
    """The boxes and masks in the text, in its order, in pixels of the picture (of the first one, if there are several).
    They have scores only if log-probabilities were asked for."""
    malformed: list[Malformed] = field(default_factory=list)
    """Parts of the text that look like a region but are none, with the reason."""
    image_size: tuple[int, int] = field(kw_only=True)
    """Width and height in pixels of the picture, or of the first one: the pixels in which regions are given."""
    logprobs: list[TokenLogprob] | None = field(default=None, kw_only=True)
    """One for each of token_ids, if log-probabilities were asked for."""
    image: AskedImage | None = field(default=None, kw_only=True, repr=False, compare=False)
    """The (first) picture that was asked about: a path or address is opened again when the answer is drawn, an object
    is referred to weakly. None in a server, and after `dataclasses.replace(generation, image=None)`."""

    def draw(self, image: Any = None) -> Image.Image:
        """The picture with the regions drawn in, RGB; see `regions.draw.annotate`.

        image: anything that `load_image` takes, of any size; by default the picture that was asked about. Raises
        InputError if that cannot be read, is no longer in memory, or has another size now.
        """
        from ..processor import load_image
        from ..regions.draw import annotate

        return annotate(self._picture() if image is None else load_image(image), self.regions)

    def _picture(self) -> Image.Image:
        if self.image is None:
            raise InputError("this answer does not know its picture; draw(image) takes it")
        return self.image.load(self.image_size)

    def to_supervision(self, labels: Sequence[str] | None = None) -> Any:
        """The regions as `supervision.Detections`, for its annotators, trackers and metrics.

        labels: `class_id` is a position in it; by default in the labels found, in the order in which they first appear.
        Raises InputError if the package supervision is not installed, which pg_mlx does not depend on.
        """
        try:
            from supervision import Detections
        except ImportError:
            raise InputError("to_supervision needs the package supervision: pip install supervision") from None
        from ..regions.export import arrays

        return Detections(**arrays(self.regions, labels))

    def to_coco(
        self, image_id: int = 1, categories: MutableMapping[str, int] | None = None, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """The regions as COCO annotations: bbox [x, y, width, height], area, category_id, segmentation as run lengths
        where there is a mask, iscrowd 0, and, beyond COCO, label and score (if it was computed).

        categories: ids by label. A label that is not in it gets the next number and is added, so one dict can serve
        many answers. By default labels are numbered from 1 as they appear. first_id: the id of the first annotation;
        the others follow.
        """
        from ..regions.export import to_annotation

        numbers: MutableMapping[str, int] = {} if categories is None else categories
        return [
            to_annotation(
                region, number, image_id, numbers.setdefault(region.label, max(numbers.values(), default=0) + 1)
            )
            for number, region in enumerate(self.regions, first_id)
        ]

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture with its regions, and the text."""
        from ..regions.notebook import SIDE

        return self._html(SIDE)

    def _repr_png_(self) -> bytes | None:
        """The picture for notebooks that show no HTML; None if it cannot be had."""
        from ..regions.notebook import to_png

        image = self._picture_or_reason()
        return None if isinstance(image, str) else to_png(image, self.regions)

    def _html(self, side: int) -> str:
        from ..regions.notebook import to_html

        note = "" if self.finish_reason == "stop" else f"ended by: {self.finish_reason}"
        return to_html(self._picture_or_reason(), self.regions, self.text, note, side)

    def _picture_or_reason(self) -> Image.Image | str:
        try:
            return self._picture()
        except InputError as error:
            return str(error)

    def to_json(self) -> dict[str, Any]:
        """The answer in JSON types, as `generate --format json`, the worker and its clients have it."""
        from ..regions.export import malformed_to_json, to_json

        width, height = self.image_size
        logprobs = {} if self.logprobs is None else {"logprobs": [token.to_json() for token in self.logprobs]}
        return {
            "width": width,
            "height": height,
            "text": self.text,
            "regions": [to_json(region) for region in self.regions],
            "malformed": [malformed_to_json(malformed) for malformed in self.malformed],
            "finish_reason": self.finish_reason,
            "token_ids": self.token_ids,
            **logprobs,
            "stats": asdict(self.stats),
        }


class Generations(list[Generation]):
    """A list of answers, which a notebook shows as a grid of pictures."""

    def _repr_html_(self) -> str:
        from ..regions.notebook import GRID_SIDE, side_by_side

        return side_by_side([one._html(GRID_SIDE) for one in self[:_SHOWN]], max(0, len(self) - _SHOWN))


@dataclass(frozen=True)
class Step:
    """One token of a running answer.

    The last Step has no token, but the rest of the text, the region that the answer ended with, and the Generation.
    """

    text: str
    """The text that became final with this token; "" if its character is not complete yet. With stop strings a Step
    comes once it is certain that none of its text belongs to one."""
    token_id: int | None = None
    generation: Generation | None = None
    logprob: float | None = None
    """Natural logarithm of the token's probability before temperature and truncation, if it was asked for and the token
    was not forced."""
    regions: Sequence[Region] = ()
    """Regions whose records became complete with this token. A record is complete when nothing more can belong to its
    label: at the separator, or at the end. All steps together have the regions of the Generation."""
    token: TokenLogprob | None = None
    """The token with its log-probability and its alternatives, if they were asked for."""
