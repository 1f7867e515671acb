"""Each rank has some layers of a decoder: the result is that of one process, bit by bit.

Hidden states go from rank to rank and from the last one back to rank 0: with the command, one message more than there
are ranks. While one rank computes the others wait, so a pass takes as long as on one machine. What is gained is memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..cache import KVCache
from ..config import PaliGemmaConfig
from ..gemma import Gemma
from ..paligemma import PaliGemma
from .decoder import Head, LeadingDecoder, Read
from .link import Link


class Pipeline:
    """Passes through one rank's layers after another's (decoder.Mode)."""

    def make(self, link: Link, config: PaliGemmaConfig, *, dtype: mx.Dtype) -> PaliGemma:
        """As Mode.make."""
        model = PaliGemma(config, dtype=dtype)
        model.language_model = LeadingDecoder(link, self, config.text, dtype=dtype, tied=config.tie_word_embeddings)
        return model

    def prepare(self, link: Link, decoder: Gemma) -> None:
        """As Mode.prepare: the last rank alone has the final norm."""
        decoder.continues = link.rank < link.size - 1

    def lead(self, link: Link, x: mx.array, read: Read, tokens_back: int) -> tuple[mx.array, KVCache]:
        """As Mode.lead."""
        rows, part = read(x)
        link.send(rows, 1)
        mx.eval(part.layers)
        return link.receive((x.shape[0], tokens_back, x.shape[2]), x.dtype, link.size - 1), part

    def follow(self, link: Link, shape: Sequence[int], dtype: mx.Dtype, read: Read, head: Head | None) -> KVCache:
        """As Mode.follow. There are no logits to compute: rank 0 has the head."""
        rows, part = read(link.receive(shape, dtype, link.rank - 1))
        link.send(rows, (link.rank + 1) % link.size)
        mx.eval(part.layers)
        return part
