"""What a user sees of a row: its tokens as text, regions and probabilities, and statistics when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

import mlx.core as mx

from ..paligemma import PaliGemma
from ..processor import Processor, TextStream
from ..regions import Region
from ..regions.reader import AnswerReader
from .results import Generation, Stats, Step
from .rows import Row


class Answer:
    """Turns the tokens of one row into Steps, the last of which has the Generation."""

    def __init__(self, row: Row, model: PaliGemma, processor: Processor, start: float):
        """start: time.perf_counter() when the answer was asked for."""
        self.row = row
        self._model, self._processor, self._start = model, processor, start
        self._text = TextStream(processor.tokenizer)
        self._reader = AnswerReader(row.request.pictures[0].size, processor.mask_decoder)
        self._regions: list[Region] = []

    def push(self, token_ids: Sequence[int]) -> Iterator[Step]:
        """A Step for each of these tokens, which are the row's newest, and the last Step if the row is finished.

        Raises what the mask decoder raises; the Steps before that have been yielded.
        """
        row = self.row
        logprobs = row.logprobs[len(row.logprobs) - len(token_ids) :] or repeat(None)
        for token_id, logprob in zip(token_ids, logprobs, strict=False):
            piece = self._text.push(token_id)
            regions = self._reader.push(piece, logprob)
            self._regions += regions
            yield Step(piece, token_id, logprob=logprob, regions=regions)
        if row.finish_reason is not None:
            piece = self._text.flush()
            regions = [*self._reader.push(piece), *self._reader.flush()]
            self._regions += regions
            yield Step(piece, generation=self._generation(), regions=regions)

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
            self._processor.tokenizer.decode(row.token_ids),
            row.token_ids,
            row.finish_reason,
            stats,
            self._regions,
            self._reader.malformed,
            image_size=row.request.pictures[0].size,
        )
