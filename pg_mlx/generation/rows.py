"""One answer of many: what is asked, what it may say, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .pictures import Picture
from .results import FinishReason
from .sampling import SamplingOptions

Allowed = list[int] | range | None


class Guide(Protocol):
    """What one answer may say, token by token. Implementations know a grammar; the engine knows none."""

    def allowed(self) -> Allowed:
        """The ids of which the next token must be one, as a list or a range with a step of 1; None for all."""

    def advance(self, token_id: int) -> Sequence[int]:
        """The next token is token_id. Returns those that have to follow it, often none: the model reads them in the
        same pass and is not asked. The guide's state is then the one after them."""


@dataclass(frozen=True)
class Request:
    """One question: pictures, ids of the prompt (<bos> first, newline last), and how to answer."""

    pictures: Sequence[Picture]
    prompt_ids: Sequence[int]
    options: SamplingOptions = field(default_factory=SamplingOptions)
    guide: Guide | None = None
    logprobs: bool = False
    """Also report how probable each chosen token was: one more pass over the logits."""
    ready_s: float = 0.0
    """What reading the pictures and the prompt took, which belongs to the time to the first token."""


class Row:
    """One answer: waiting, running, or finished, which is when finish_reason is set. token_ids leave out <eos>."""

    def __init__(self, request: Request, vocab_size: int):
        self.request = request
        self.token_ids: list[int] = []
        self.logprobs: list[float | None] = []
        """Of token_ids, where asked for; None for those that the guide forced. Natural logarithm of the probability
        before temperature and truncation, among the tokens that the guide allowed."""
        self.finish_reason: FinishReason | None = None
        self.decoded = 0  # tokens, <eos> included
        self.vision_s = self.prefill_s = 0.0  # of the passes it took part in
        self.prompt_tokens = 0
        self.first_token_at = self.finished_at = 0.0  # time.perf_counter()
        self.cancelled = False
        self.sample = request.options.sampler(vocab_size)

    def cancel(self) -> None:
        """The answer ends before the next step."""
        self.cancelled = True

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.request.options.max_tokens - self.decoded

    def allowed(self) -> Allowed:
        """As Guide.allowed."""
        return self.request.guide.allowed() if self.request.guide else None

    def take(self, token_id: int, logprob: float, eos_id: int) -> list[int]:
        """The model's next token -> what the row has to read: that one and those forced by the guide. Sets
        finish_reason where the answer ends."""
        guide = self.request.guide
        taken: list[int] = []
        for token in (token_id, *(guide.advance(token_id) if guide and token_id != eos_id else ())):
            self.decoded += 1
            if token == eos_id:
                self.finish_reason = "stop"
                break
            taken.append(token)
            if self.left == 0:
                self.finish_reason = "length"
                break
        self.token_ids += taken
        if self.request.logprobs:
            self.logprobs += [logprob, *[None] * len(taken)][: len(taken)]
        return taken


@dataclass(frozen=True)
class Progress:
    """What a step did for a row: the tokens it added (none if the answer ended with <eos> or was cancelled)."""

    row: Row
    token_ids: Sequence[int]
