"""The results of generation: a Step for each token, and the Generation at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..regions import Malformed, Region

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Stats:
    """Where the time went, in seconds, and what was held, in bytes."""

    load_s: float
    """Reading the checkpoint, before this generation."""
    vision_s: float
    """SigLIP and connector, the picture's decoding and resizing not included."""
    prefill_s: float
    """Picture rows and prompt through the decoder, up to the first token."""
    time_to_first_token_s: float
    """From the call to the first token, everything included but loading."""
    prompt_tokens: int
    """Picture rows and prompt tokens."""
    prefill_tps: float
    decode_tokens: int
    """Tokens decoded, <eos> included; decode_tps does not count the first, which prefill made."""
    decode_tps: float
    peak_memory_bytes: int
    """The most that MLX has held since the process started, loading included."""


@dataclass(frozen=True)
class Generation:
    """A finished answer. token_ids leave out <eos>."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: Stats
    regions: list[Region] = field(default_factory=list)
    """The boxes and masks in the text, in its order, in the picture's pixels (the first one's, if there were several).
    Scores only where log-probabilities were asked for."""
    malformed: list[Malformed] = field(default_factory=list)
    """What in the text looked like a region but was none."""
    image_size: tuple[int, int] = field(kw_only=True)
    """Width and height in pixels of the picture, or of the first one: the pixels in which regions are given."""

    def to_json(self) -> dict[str, Any]:
        """The answer in JSON types, as `generate --format json`, the worker and its clients have it."""
        from ..regions.export import malformed_to_json, to_json

        width, height = self.image_size
        return {
            "width": width,
            "height": height,
            "text": self.text,
            "regions": [to_json(region) for region in self.regions],
            "malformed": [malformed_to_json(malformed) for malformed in self.malformed],
            "finish_reason": self.finish_reason,
            "token_ids": self.token_ids,
            "stats": asdict(self.stats),
        }


@dataclass(frozen=True)
class Step:
    """One token of a running answer: the text that became final with it (perhaps none yet).

    The last Step has no token; it carries what text was still held back, the region that the answer ended with, and the
    Generation.
    """

    text: str
    token_id: int | None = None
    generation: Generation | None = None
    logprob: float | None = None
    """Natural logarithm of the token's probability before temperature and truncation, if it was asked for and the token
    was not forced."""
    regions: Sequence[Region] = ()
    """Those whose records became complete with this token, which is when nothing more can belong to the label: at the
    separator, or at the end. All steps together have the regions of the Generation."""
