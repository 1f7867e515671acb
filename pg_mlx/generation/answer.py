"""What a user sees of a row: its tokens as text, regions and probabilities, and statistics when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat

import mlx.core as mx

from ..paligemma import PaliGemma
from ..processor import Processor, TextStream
from ..regions import Region
from ..regions.reader import AnswerReader
from .next_tokens import Choice
from .results import Generation, Stats, Step, TokenLogprob
from .rows import Row
from .stop import HeldBack


class Answer:
    """Turns the tokens of one row into Steps, the last of which has the Generation."""

    def __init__(self, row: Row, model: PaliGemma, processor: Processor, start: float):
        """start: time.perf_counter() when the answer was asked for."""
        self.row = row
        self._model, self._processor, self._start = model, processor, start
        self._text = TextStream(processor.tokenizer)
        self._reader = AnswerReader(row.request.pictures[0].size, processor.mask_decoder)
        self._regions: list[Region] = []
        self._tokens: list[TokenLogprob] = []
        stops = row.request.stops
        self._held = HeldBack(stops.strings) if stops else None
        self._token_ids: list[int] = []
        self._pieces: list[str] = []
        """The tokens and the text that the answer keeps, if stop strings may cut it."""

    def push(self, token_ids: Sequence[int]) -> Iterator[Step]:
        """A Step for each of these tokens, which are the row's newest, and the last Step if the row is finished.

        Raises what the mask decoder raises; the Steps before that have been yielded.
        """
        row = self.row
        choices = row.choices[len(row.choices) - len(token_ids) :] or repeat(None)
        for token_id, choice in zip(token_ids, choices, strict=False):
            token = self._token(token_id, choice)
            logprob = token.logprob if token else None
            step = Step(self._text.push(token_id), token_id, logprob=logprob, token=token)
            for certain in self._held.push(step) if self._held else (step,):
                yield self._add(certain)
        if row.finish_reason is not None:
            rest = Step(self._text.flush())
            if self._held:
                last = [*self._held.push(rest), *self._held.flush()]
                for certain in last:
                    if certain.token_id is not None:
                        yield self._add(certain)
                rest = last[-1] if last and last[-1].token_id is None else Step("")
            self._pieces.append(rest.text)
            regions = [*self._reader.push(rest.text), *self._reader.flush()]
            self._regions += regions
            yield Step(rest.text, generation=self._generation(), regions=regions)

    def _add(self, step: Step) -> Step:
        """The step with the regions that its text completes. It belongs to the answer from now on."""
        if step.token:
            self._tokens.append(step.token)
        if self._held:
            assert step.token_id is not None
            self._token_ids.append(step.token_id)
            self._pieces.append(step.text)
        regions = self._reader.push(step.text, step.logprob)
        self._regions += regions
        return replace(step, regions=regions) if regions else step

    def _token(self, token_id: int, choice: Choice | None) -> TokenLogprob | None:
        """What is reported about a token; None if log-probabilities were not asked for."""
        wanted = self.row.request.alternatives
        if wanted is None:
            return None
        if choice is None:
            return self._named(token_id, None)
        others = [self._named(other, logprob) for other, logprob in choice.alternatives[:wanted]]
        return replace(self._named(token_id, choice.logprob), alternatives=others)

    def _named(self, token_id: int, logprob: float | None) -> TokenLogprob:
        tokenizer = self._processor.tokenizer
        special = {tokenizer.pad_id: "<pad>", tokenizer.eos_id: "<eos>", tokenizer.bos_id: "<bos>"}
        if token_id in special:
            return TokenLogprob(token_id, special[token_id], None, logprob)
        piece = tokenizer.piece(token_id)
        return TokenLogprob(token_id, piece.decode(errors="replace"), piece, logprob)

    def _generation(self) -> Generation:
        row = self.row
        assert row.finish_reason is not None
        decode_s = row.finished_at - row.first_token_at if row.decoded > 1 else 0.0
        stats = Stats(
            load_s=self._model.load_s,
            vision_s=row.vision_s,
            prefill_s=row.prefill_s,
            time_to_first_token_s=row.first_token_at - self._start if row.decoded else 0.0,
            prompt_tokens=row.prompt_tokens,
            prefill_tps=row.prompt_tokens / row.prefill_s if row.prefill_s else 0.0,
            decode_tokens=row.decoded,
            decode_tps=(row.decoded - 1) / decode_s if decode_s else 0.0,
            peak_memory_bytes=mx.get_peak_memory(),
        )
        return Generation(
            "".join(self._pieces) if self._held else self._processor.tokenizer.decode(row.token_ids),
            self._token_ids if self._held else row.token_ids,
            row.finish_reason,
            stats,
            self._regions,
            self._reader.malformed,
            image_size=row.request.pictures[0].size,
            logprobs=None if row.request.alternatives is None else self._tokens,
            image=row.request.image,
        )
