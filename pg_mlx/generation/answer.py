"""A finished row as its user sees it."""

from __future__ import annotations

import mlx.core as mx

from ..paligemma import PaliGemma
from ..processor import Processor
from ..processor.tokenizer import TextStream
from ..regions import Region
from ..regions.reader import read_answer
from ..regions.region import Malformed
from .results import Generation, Stats
from .rows import Row


def generation_of(
    row: Row,
    model: PaliGemma,
    processor: Processor,
    start: float,
    found: tuple[list[Region], list[Malformed]] | None = None,
) -> Generation:
    """A finished row as its user sees it. start: time.perf_counter() when it was asked for. found: as read_answer gives
    it, if that has been read already."""
    assert row.finish_reason is not None
    decode_s = row.finished_at - row.first_token_at if row.decoded > 1 else 0.0
    stats = Stats(
        load_s=model.load_s,
        vision_s=row.vision_s,
        prefill_s=row.prefill_s,
        time_to_first_token_s=row.first_token_at - start if row.decoded else 0.0,
        prompt_tokens=row.prompt_tokens,
        prefill_tps=row.prompt_tokens / row.prefill_s if row.prefill_s else 0.0,
        decode_tokens=row.decoded,
        decode_tps=(row.decoded - 1) / decode_s if decode_s else 0.0,
        peak_memory_bytes=mx.get_peak_memory(),
    )
    answer = processor.tokenizer.decode(row.token_ids)
    if found is None:
        pieces = TextStream(processor.tokenizer)
        logged = [(pieces.push(token), logprob) for token, logprob in zip(row.token_ids, row.logprobs, strict=False)]
        found = read_answer(answer, row.request.pictures[0].size, processor.mask_decoder, logged)
    return Generation(answer, row.token_ids, row.finish_reason, stats, *found)
