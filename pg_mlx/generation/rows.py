"""One answer of many: what is asked, what it may say, and how far it has come."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from .request import Request
from .results import FinishReason
from .sampling import Allowed


class Row:
    """One answer: waiting, running, or finished, which is when finish_reason is set. token_ids leave out <eos>."""

    def __init__(self, request: Request, vocab_size: int, eos_id: int):
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
        self.guide = copy.deepcopy(request.guide)  # which has a state, while a request may be answered again
        self.sample = request.options.sampler(vocab_size)
        self._eos_id = eos_id
        self._unread: list[int] = []
        """Tokens of the answer that the model has not read."""
        self._pending: list[int] = []
        """Tokens that follow those unless the answer ends before them."""

    def cancel(self) -> None:
        """The answer ends before the next step."""
        self.cancelled = True

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.request.options.max_tokens - self.decoded

    @property
    def reads(self) -> list[int]:
        """What the model has to read next: at least one token, once there was a first one."""
        pending = self._pending[:-1] if self._closing else self._pending
        return self._unread + pending

    @property
    def asks(self) -> list[tuple[int, Allowed]]:
        """What the model is then asked: after which of those tokens, and what may follow, as in Guide.allowed."""
        if self.guide is None:  # which reads one token at a time, perhaps before Python knows it
            return [(0, None)]
        last = (len(self.reads) - 1, self.allowed())
        if not self._pending:
            return [last]
        return [(len(self._unread) - 1, [self._eos_id, self._pending[0]]), last]

    def allowed(self) -> Allowed:
        """What may follow everything that the model has read, as in Guide.allowed."""
        if self._closing:
            return [self._eos_id]
        return self.guide.allowed() if self.guide else None

    @property
    def _closing(self) -> bool:
        """Whether what is pending ends the answer."""
        return self._pending[-1:] == [self._eos_id]

    def take(self, chosen: Sequence[tuple[int, float]]) -> list[int]:
        """What the model chose where it was asked, token and log-probability -> what the answer grew by: that and the
        tokens that the guide forced. Sets finish_reason where the answer ends."""
        guide = self.guide
        read, self._pending = self._pending, []
        *decision, (token, logprob) = chosen
        coming: list[tuple[int, float | None]] = []
        if decision:
            coming = [decision[0], *((pending, None) for pending in read[1:])]
        if not decision or decision[0][0] != self._eos_id:
            coming.append((token, logprob))
            if guide and token != self._eos_id:
                coming += [(forced, None) for forced in guide.advance(token)]
        grown = self._grow(coming)
        if self.finish_reason is None:
            self._unread = grown[len(read) :]
            self._pending = self._look_ahead()
        return grown

    def _grow(self, coming: Sequence[tuple[int, float | None]]) -> list[int]:
        """Append to the answer until it ends."""
        grown: list[int] = []
        for token, logprob in coming:
            self.decoded += 1
            if token == self._eos_id:
                self.finish_reason = "stop"
                break
            grown.append(token)
            if self.request.logprobs:
                self.logprobs.append(logprob)
            if self.left == 0:
                self.finish_reason = "length"
                break
        self.token_ids += grown
        return grown

    def _look_ahead(self) -> list[int]:
        """If the answer can only end here or go on in one way: that way, up to where it branches again."""
        guide = self.guide
        allowed = guide.allowed() if guide else None
        if not guide or allowed is None or len(allowed) != 2 or self._eos_id not in allowed:
            return []
        onward = sum(allowed) - self._eos_id
        ahead = [onward, *guide.advance(onward)][: self.left]  # the answer ends before the others
        return ahead[: ahead.index(self._eos_id) + 1] if self._eos_id in ahead else ahead


@dataclass(frozen=True)
class Progress:
    """What a step did for a row: the tokens it added (none if the answer ended with <eos> or was cancelled)."""

    row: Row
    token_ids: Sequence[int]
