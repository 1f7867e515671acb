"""Every layer divided among the ranks: each has some heads and a part of the MLP, and their outputs are added up.

Two sums a layer, and the logits of each rank's rows of the head: with the command and the inputs, 2 * layers + 3
messages a pass. All ranks compute at the same time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import KVCache
from ..config import PaliGemmaConfig
from ..gemma import Gemma
from ..linear import Embedding, Ids
from ..paligemma import Lengths, PaliGemma
from .decoder import Head, LeadingDecoder, Read
from .link import Link


class Tensor:
    """Passes through divided layers (decoder.Mode). vocabulary: each rank's rows of the head."""

    def __init__(self, vocabulary: Sequence[range]):
        self.vocabulary = vocabulary

    def make(self, link: Link, config: PaliGemmaConfig, *, dtype: mx.Dtype) -> PaliGemma:
        """As Mode.make."""
        model = TensorModel(config, dtype=dtype)
        model.language_model = TensorDecoder(link, self, config.text, dtype=dtype, tied=config.tie_word_embeddings)
        return model

    def prepare(self, link: Link, decoder: Gemma) -> None:
        """As Mode.prepare."""
        for layer in decoder.layers:
            layer.self_attn["o_proj"] = Summed(layer.self_attn.o_proj, link)
            layer["mlp"] = Summed(layer.mlp, link)

    def lead(self, link: Link, x: mx.array, read: Read, tokens_back: int) -> tuple[mx.array, KVCache]:
        """As Mode.lead."""
        hidden, part = read(link.broadcast(x, x.shape, x.dtype))
        mx.eval(hidden, part.layers)
        return hidden, part

    def follow(self, link: Link, shape: Sequence[int], dtype: mx.Dtype, read: Read, head: Head | None) -> KVCache:
        """As Mode.follow."""
        hidden, part = read(link.broadcast(None, shape, dtype))
        mx.eval(hidden, part.layers)
        if head is not None:
            mx.eval(link.gather(self.padded(head(hidden))))
        return part

    def padded(self, logits: mx.array) -> mx.array:
        """A rank's logits [rows, outputs], as wide as the widest rank's: messages of all ranks have one shape."""
        return mx.pad(logits, [(0, 0), (0, max(map(len, self.vocabulary)) - logits.shape[1])])


class Summed(nn.Module):
    """A layer whose inputs are divided among the ranks: x [..., columns of this rank] -> the sum of all ranks' outputs
    [..., outputs], in the dtype of the outputs."""

    def __init__(self, inner: nn.Module, link: Link):
        super().__init__()
        self.inner, self._link = inner, link

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., columns] -> [..., outputs]."""
        return self._link.total(self.inner(x))


class TensorDecoder(LeadingDecoder):
    """Rank 0's decoder where layers are divided. It holds the whole head, and computes some of its rows if the others
    compute the rest."""

    mode: Tensor

    @contextlib.contextmanager
    def asking(self, vocab: Ids | None, places: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Within the block, which is one pass, all ranks compute the logits of these hidden states (row, token), unless
        so few ids are wanted that rank 0 has less work without the others."""
        with self.link.lock:
            rows = self.config.vocab_size if vocab is None else len(vocab)
            divided = rows * self.link.size > self.config.vocab_size
            self.asked = [number for place in places for number in place] if divided else []
            yield
            self.asked = []

    @property
    def head_table(self) -> Embedding:
        """As Gemma.head_table; while the ranks share the work, one whose products they compute together."""
        table = super().head_table
        return DividedTable(table, self.link, self.mode) if self.asked else table


class DividedTable(Embedding):
    """An output head whose rows are multiplied by all ranks."""

    def __init__(self, table: Embedding, link: Link, mode: Tensor):
        super().__init__(1, 1)
        self._table, self._link, self._mode = (table,), link, mode

    def as_head(self, x: mx.array, ids: Ids | None = None) -> mx.array:
        """As Embedding.as_head, computed at once: x [rows, D] -> [rows, V]."""
        vocabulary = self._mode.vocabulary
        with self._link.waiting():
            parts = self._link.gather(self._mode.padded(self._table[0].as_head(x, vocabulary[0])))
            mx.eval(parts)
        logits = mx.concatenate([parts[rank, :, : len(own)] for rank, own in enumerate(vocabulary)], axis=-1)
        if ids is None:
            return logits
        return logits[:, ids.start : ids.stop] if isinstance(ids, range) else logits[:, mx.array(ids)]


class TensorModel(PaliGemma):
    """A model whose passes say at their beginning which logits are wanted, so that all ranks compute them."""

    language_model: TensorDecoder

    def prefill(
        self,
        features: mx.array,
        prefix_ids: mx.array,
        *,
        capacity: int,
        prefix_lengths: Lengths | None = None,
        vocab: Ids | None = None,
    ) -> tuple[mx.array, KVCache]:
        """As PaliGemma.prefill."""
        with self.language_model.asking(vocab, [(row, 0) for row in range(prefix_ids.shape[0])]):
            return super().prefill(features, prefix_ids, capacity=capacity, prefix_lengths=prefix_lengths, vocab=vocab)

    def extend(
        self,
        token_ids: mx.array,
        cache: KVCache,
        counts: Lengths | None = None,
        *,
        vocab: Ids | None = None,
        after: Sequence[tuple[int, int]] | None = None,
        order_only: bool = False,
    ) -> tuple[mx.array, KVCache]:
        """As PaliGemma.extend."""
        places = after
        if places is None:
            batch, slots = token_ids.shape
            real: Any = [slots] * batch if counts is None else counts
            real = real.tolist() if isinstance(real, mx.array) else real
            places = [(row, count - 1) for row, count in enumerate(real)]
        with self.language_model.asking(vocab, places):
            return super().extend(token_ids, cache, counts, vocab=vocab, after=after, order_only=order_only)
