"""The results of generation: a Step for each token, and the Generation at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..memory.size import format_size
from ..regions import Malformed, Region

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability: a natural logarithm, before penalties, temperature and truncation, among the
    tokens that a constrained answer allowed."""

    token_id: int
    text: str
    """Of this token alone. U+FFFD stands for bytes that are no character without their neighbours."""
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
