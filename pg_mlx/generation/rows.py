"""One answer among those of an engine: its tokens so far, and what the model has to read next."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from .next_tokens import Choice
from .request import Request
from .results import FinishReason
from .sampling import Allowed

Asks = list[tuple[int, Allowed]]
"""(index in the tokens that a row reads in a pass, allowed ids) for each position whose logits are needed."""


class Row:
    """One answer. It waits, runs, or is finished. Once it is finished, finish_reason is set. token_ids leave out <eos>.

    In every pass the model reads some tokens of the row (`reads`) and chooses after some of them (`asks`); `take` gets
    what it chose. Without a guide a row reads the token that was chosen last, and the next one is chosen. A guide lets
    the model read several tokens in one pass. An answer to `detect cat ; dog`, just after "cat" was chosen:

        token     <loc>   <loc>   <loc>   <loc>   cat             ;
        state     read    read    read    read    unread          pending
        choice                                    <eos> or ";"?   which <loc>?

        read      The model has read it: its keys and values are in the cache.
        unread    It is in the answer, but not read yet: the token chosen last, and those that the guide forced then.
        pending   It is not in the answer yet. The guide allows only <eos> or one way on here, so the tokens of that way
                  are read together with the unread ones, before it is known whether the answer goes on.

    With something pending there are two choices in one pass: after the last unread token (<eos>, or the first pending
    one?), and after the last pending token (what comes then?). If the first choice is <eos>, the answer has ended, and
    what was read beyond is of no use. Otherwise the pending tokens join the answer, and the second choice after them.
    If the pending tokens end with <eos>, that <eos> is not read, since nothing is chosen after it.
    """

    def __init__(self, request: Request, vocab_size: int, eos_id: int):
        """vocab_size: this id and all above it are never chosen."""
        self.request = request
        self.cancelled = False
        self._vocab_size, self._eos_id = vocab_size, eos_id
        self.restart()

    def restart(self) -> None:
        """Forget the answer and wait again. The same tokens will come, since the request has a seed."""
        self.token_ids: list[int] = []
        self.choices: list[Choice | None] = []
        """One for each of token_ids if the request asks for log-probabilities; None for a token that the guide forced.
        The logarithm is the natural one of the probability before penalties, temperature and truncation, among the
        tokens that the guide allowed."""
        self.finish_reason: FinishReason | None = None
        self.decoded = 0
        """Tokens so far, <eos> included."""
        self.vision_s = self.prefill_s = 0.0
        """Seconds of the passes that this row took part in."""
        self.prompt_tokens = 0
        """Image tokens and prompt tokens."""
        self.first_token_at = self.finished_at = 0.0
        """time.perf_counter() at these moments."""
        self.guide = copy.deepcopy(self.request.guide)  # it changes with the answer, and the request may be used again
        self.sample = self.request.options.sampler(self._vocab_size)
        self._watch = self.request.stops.watch() if self.request.stops else None
        self._unread: list[int] = []
        self._pending: list[int] = []

    @property
    def logprobs(self) -> list[float | None]:
        """The log-probabilities of `choices`."""
        return [choice and choice.logprob for choice in self.choices]

    def cancel(self) -> None:
        """The answer ends before the next step. May be called on any thread."""
        self.cancelled = True

    @property
    def left(self) -> int:
        """The most tokens that may still come."""
        return self.request.options.max_tokens - self.decoded

    @property
    def takes_largest(self) -> bool:
        """Whether nothing matters of the logits but which one is the largest."""
        return self.sample.greedy and not self.sample.looks_back and self.request.alternatives is None

    @property
    def reads(self) -> list[int]:
        """The tokens that the model reads in the next pass: at least one, once there was a first token."""
        pending = self._pending[:-1] if self._ends_pending else self._pending
        return self._unread + pending

    @property
    def asks(self) -> Asks:
        """One position in `reads` or two."""
        if self.guide is None:
            return [(0, None)]
        last = (len(self.reads) - 1, self.allowed())
        if not self._pending:
            return [last]
        return [(len(self._unread) - 1, [self._eos_id, self._pending[0]]), last]

    @property
    def asks_ahead(self) -> Asks | None:
        """What `asks` will be once the next token is taken, if that does not depend on the token: the pass that reads
        it can begin before it is known. None if it depends on it."""
        if self._pending or self.sample.looks_back:
            return None
        if self.guide is None:
            return [(0, None)]
        allowed = self.guide.allowed_after_next()
        return None if allowed is None or self._decides(allowed) else [(0, allowed)]

    @property
    def histories(self) -> list[Sequence[int]]:
        """The prompt and the answer before each of `asks`."""
        known = [*self.request.prompt_ids, *self.token_ids]
        if not self._pending:
            return [known]
        return [known, known + self.reads[len(self._unread) :]]

    def allowed(self) -> Allowed:
        """The ids that may follow the last of `reads`; as Guide.allowed."""
        if self._ends_pending:
            return [self._eos_id]
        return self.guide.allowed() if self.guide else None

    @property
    def _ends_pending(self) -> bool:
        """Whether the pending tokens end with <eos>."""
        return self._pending[-1:] == [self._eos_id]

    def take(self, chosen: Sequence[Choice]) -> list[int]:
        """Add what the model chose to the answer. Sets finish_reason where the answer ends.

        chosen: one for each of `asks`. Returns the tokens that the answer grew by: pending ones
        that are now certain, the chosen one, and those that the guide forces after it.
        """
        guide = self.guide
        pending, self._pending = self._pending, []
        *decision, last = chosen
        coming: list[tuple[int, Choice | None]] = []
        if decision:
            coming = [(decision[0].token, decision[0]), *((forced, None) for forced in pending[1:])]
        if not decision or decision[0].token != self._eos_id:
            coming.append((last.token, last))
            if guide and last.token != self._eos_id:
                coming += [(forced, None) for forced in guide.advance(last.token)]
        grown = self._grow(coming)
        if self.finish_reason is None:
            self._unread = grown[len(pending) :]
            self._pending = self._only_way_on()
        return grown

    def _grow(self, coming: Sequence[tuple[int, Choice | None]]) -> list[int]:
        """Append these tokens until the answer ends. Returns those that were appended."""
        grown: list[int] = []
        for token, choice in coming:
            self.decoded += 1
            if token == self._eos_id:
                self.finish_reason = "stop"
                break
            grown.append(token)
            if self.request.alternatives is not None:
                self.choices.append(choice)
            if self._watch and self._watch.ends(token):
                self.finish_reason = "stop"
                break
            if self.left == 0:
                self.finish_reason = "length"
                break
        self.token_ids += grown
        return grown

    def _decides(self, allowed: Sequence[int]) -> bool:
        """Whether the choice is between <eos> and one other token."""
        return len(allowed) == 2 and self._eos_id in allowed

    def _only_way_on(self) -> list[int]:
        """If the guide allows <eos> or one other token: that token and those that it forces. Otherwise nothing."""
        guide = self.guide
        allowed = guide.allowed() if guide else None
        if not guide or allowed is None or not self._decides(allowed):
            return []
        onward = sum(allowed) - self._eos_id
        ahead = [onward, *guide.advance(onward)][: self.left]  # the answer is over before the others
        return ahead[: ahead.index(self._eos_id) + 1] if self._eos_id in ahead else ahead


def asks_ahead(rows: Sequence[Row]) -> list[Asks] | None:
    """For each row what the pass after the next token is asked, if that pass can begin before any row's token is known
    and some row may need it. None otherwise."""
    asks = [row.asks_ahead for row in rows]
    known = [one for one in asks if one is not None]
    return known if len(known) == len(rows) and any(row.left > 1 for row in rows) else None


@dataclass(frozen=True)
class Progress:
    """What a step did for a row."""

    row: Row
    token_ids: Sequence[int]
    """Those that it added; none if the answer ended with <eos> or was cancelled."""
    error: Exception | None = None
    """Why the row got no answer. It is not in the engine any more. Only Recovery reports this; Engine.step raises."""
