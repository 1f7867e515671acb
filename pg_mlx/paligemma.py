"""PaliGemma: SigLIP vision tower -> linear connector -> Gemma decoder.

Beyer et al. 2024 (arXiv 2407.07726), Steiner et al. 2024 (arXiv 2412.03555); code: big_vision `models/proj/paligemma`.
Everything else in this package is a loop around three functions, arrays in and arrays out:

    features = model.encode_image(pixels)
    logits, cache = model.prefill(features, prefix_ids, capacity=...)
    logits, cache = model.step(token_ids, cache)

Letters of shapes, in the whole package: B batch rows, H and W image height and width in pixels, N image tokens of a
prompt, P prompt slots, S suffix slots, T tokens of one pass, L keys (cache slots in use), V vocabulary, D decoder
width, C vision width, R rank of an adapter. `heads`, `kv_heads`, `head_dim`, `outputs`, `columns` are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .attention_mask import prefix_lm_mask
from .cache import KVCache
from .config import PaliGemmaConfig
from .connector import Connector
from .errors import InputError
from .gemma import Gemma, take_token
from .linear import Ids, matrices
from .siglip import VisionTower

Lengths = Sequence[int] | mx.array
"""B numbers: how many slots of each right-padded row are real."""


class PaliGemma(nn.Module):
    """The whole model. `prefix_ids` are <bos>, prompt and newline; image placeholders are not needed, because the image
    tokens always stand before the text.

    dtype: of activations and cache. use_sliding_window, layers_at_once: see the properties. Weights are placeholders
    until a checkpoint fills them. Raises InputError for an impossible layers_at_once.
    """

    def __init__(
        self,
        config: PaliGemmaConfig,
        *,
        dtype: mx.Dtype = mx.float32,
        use_sliding_window: bool = False,
        layers_at_once: int | None = None,
    ):
        super().__init__()
        check_layers_at_once(layers_at_once)
        self.config = config
        self.load_s = 0.0  # seconds that loading took, which is known after it; for the statistics of a generation
        self.vision_tower = VisionTower(config.vision, layers_at_once)
        self.connector = Connector(config.vision.hidden_size, config.text.hidden_size)
        self.language_model = Gemma(
            config.text,
            dtype=dtype,
            use_sliding_window=use_sliding_window,
            layers_at_once=layers_at_once,
            tied=config.tie_word_embeddings,
        )

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of activations and cache."""
        return self.language_model.dtype

    @property
    def use_sliding_window(self) -> bool:
        """False (default): full attention in all layers, as the original code trains and runs. True: Gemma 2's even
        layers let the answer see only the last `sliding_window` tokens, as transformers does. They differ only
        beyond 4096 tokens, that is at 896 pixels."""
        return self.language_model.use_sliding_window

    @use_sliding_window.setter
    def use_sliding_window(self, value: bool) -> None:
        self.language_model.use_sliding_window = value

    @property
    def layers_at_once(self) -> int | None:
        """How many layers a picture or a prefix goes through before the GPU may do other work; None (default): all.

        Fewer layers keep macOS from ending long work, as at 896 pixels on small chips, and hold less scratch memory. On
        a GPU, decoder layers whose weights are unpacked for a prefix always run one by one, so that the unpacked
        weights of one layer only are held at a time. Raises InputError for less than 1.
        """
        return self.language_model.layers_at_once

    @layers_at_once.setter
    def layers_at_once(self, value: int | None) -> None:
        check_layers_at_once(value)
        self.language_model.layers_at_once = self.vision_tower.layers_at_once = value

    @property
    def float_layers(self) -> int:
        """How many of the decoder's layers hold float weights only."""
        packed = (any(matrix.quantization for matrix in matrices(layer)) for layer in self.language_model.layers)
        return sum(not one for one in packed)

    def encode_image(self, pixels: mx.array, run: Callable[[nn.Module, mx.array], mx.array] | None = None) -> mx.array:
        """pixels float [B, H, W, 3] in -1..1 -> features [B, N, D] in the compute dtype; N is 256, 1024 or 4096 for
        224, 448 or 896 pixels. Several pictures of one prompt are concatenated along N afterwards. run: calls a layer
        of the tower (siglip.py).

        Raises InputError for pixels of another shape.
        """
        side = self.config.vision.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3):
            raise InputError(f"pixels have shape {pixels.shape}, but this model reads [B, {side}, {side}, 3]")
        return self.connector(self.vision_tower(pixels, run))

    def logits(
        self,
        features: mx.array,
        prefix_ids: mx.array,
        suffix_ids: mx.array | None = None,
        prefix_lengths: Lengths | None = None,
        suffix_lengths: Lengths | None = None,
    ) -> mx.array:
        """Logits at every text position, as training and scoring need them: float32 [B, P + S, V].

        features [B, N, D]; prefix_ids int [B, P]; suffix_ids int [B, S]. Both are right-padded where the lengths say
        so; logits at padded positions have no meaning. The prefix attends in both directions, the suffix causally. The
        logits that predict the first suffix token stand at the last real prefix position. Raises InputError for
        shapes or lengths that do not fit together.
        """
        batch, prefix_slots = prefix_ids.shape
        images = features.shape[1]
        ids = prefix_ids if suffix_ids is None else mx.concatenate([prefix_ids, suffix_ids], axis=1)
        suffix_slots = ids.shape[1] - prefix_slots
        prefix = images + mx.array(_lengths(prefix_lengths, batch, prefix_slots, "prefix_lengths"))
        used = prefix + mx.array(_lengths(suffix_lengths, batch, suffix_slots, "suffix_lengths"))

        x = self._inputs(features, ids)
        if prefix_lengths is not None:  # close each row's gap between prefix and suffix
            x = _take(x, _shift_after(x.shape[1], prefix, images + prefix_slots - prefix))
        masks: tuple[mx.array | None, ...] = (None, None)
        if suffix_slots or prefix_lengths is not None:
            window = self.config.text.sliding_window if self.use_sliding_window else None
            masks = tuple(prefix_lm_mask(x.shape[1], prefix, used, w) for w in (None, window))
        hidden = self.language_model(x, *masks)
        if prefix_lengths is not None:  # and open it again
            end = mx.full((batch,), images + prefix_slots)
            hidden = _take(hidden, _shift_after(x.shape[1], end, prefix - end))
        return self.language_model.head(hidden[:, images:])

    def prefill(
        self,
        features: mx.array,
        prefix_ids: mx.array,
        *,
        capacity: int,
        prefix_lengths: Lengths | None = None,
        vocab: Ids | None = None,
    ) -> tuple[mx.array, KVCache]:
        """Read pictures and prompts: float32 logits [B, V] for the first new token, and the cache.

        features [B, N, D]; prefix_ids int [B, P], right-padded where prefix_lengths says so. capacity: slots of the
        cache, N + P + new tokens; InputError is raised if it is too small. vocab: compute only the logits of these ids,
        [B, len(vocab)], which takes less work. A range is read where it is; for a list, its entries are copied first.
        """
        batch, slots = prefix_ids.shape
        x = self._inputs(features, prefix_ids)
        if capacity < x.shape[1]:
            raise InputError(f"a capacity of {capacity} tokens cannot hold a prefix of {x.shape[1]}")
        lengths = None
        if prefix_lengths is not None:
            lengths = [features.shape[1] + n for n in _lengths(prefix_lengths, batch, slots, "prefix_lengths")]
        hidden, cache = self.language_model.prefill(x, capacity, lengths)
        return self.language_model.head(hidden[:, 0], vocab), cache

    def step(self, token_ids: mx.array, cache: KVCache, *, vocab: Ids | None = None) -> tuple[mx.array, KVCache]:
        """Append one token a row, token_ids int [B]: float32 logits [B, V] for the token after it, and the new cache.

        vocab: as for prefill. Raises InputError when the cache is full.
        """
        return self.extend(token_ids[:, None], cache, vocab=vocab)

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
        """Append several tokens a row in one pass, with the result of as many steps: token_ids int [B, T] -> float32
        logits [B, V] for the token after each row's last one, and the cache with all of them.

        counts: how many (1..T) tokens of each right-padded row are real. vocab: as for prefill. after: (row, token)
        pairs; with them the logits are [len(after), V], each for what follows that token. order_only: as for
        Gemma.head. Raises InputError unless every row has T free slots in the cache.
        """
        batch, slots = token_ids.shape
        real = None if counts is None else _lengths(counts, batch, slots, "counts", least=1)
        hidden, cache = self.language_model.extend(self.language_model.embed(token_ids), cache, real)
        if after is not None:
            rows, tokens = (mx.array(index) for index in zip(*after, strict=True))
            return self.language_model.head(hidden[rows, tokens], vocab, order_only), cache
        last = slots - 1 if real is None else mx.array(real) - 1
        return self.language_model.head(take_token(hidden, last)[:, 0], vocab, order_only), cache

    def _inputs(self, features: mx.array, ids: mx.array) -> mx.array:
        """What the decoder reads, [B, N + T, D]: image features as they are, text embeddings scaled (connector.py)."""
        if features.ndim != 3 or features.shape[0] != ids.shape[0]:
            raise InputError(f"features {features.shape} and ids {ids.shape} do not describe the same batch")
        return mx.concatenate([features.astype(self.dtype), self.language_model.embed(ids)], axis=1)


def check_layers_at_once(count: int | None) -> None:
    """Raises InputError unless it is None or at least 1."""
    if count is not None and count < 1:
        raise InputError(f"layers_at_once is {count}, but must be 1 or more")


def _lengths(lengths: Lengths | None, batch: int, slots: int, name: str, least: int = 0) -> list[int]:
    """B numbers; `slots` everywhere if lengths is None. Raises InputError for impossible ones."""
    if lengths is None:
        return [slots] * batch
    values: Any = lengths.tolist() if isinstance(lengths, mx.array) else list(lengths)
    if len(values) != batch or not all(isinstance(n, int) and least <= n <= slots for n in values):
        raise InputError(f"{name} are {values}, but must be {batch} numbers from {least} to {slots}")
    return values


def _shift_after(length: int, start: mx.array, shift: mx.array) -> mx.array:
    """Indices [B, length] that read slot j from j + shift[b] where j >= start[b], from j before."""
    slots = mx.arange(length)
    return mx.clip(slots + mx.where(slots >= start[:, None], shift[:, None], 0), 0, length - 1)


def _take(x: mx.array, index: mx.array) -> mx.array:
    """x [B, T, D] reordered along T by index int [B, T]."""
    return mx.take_along_axis(x, index[..., None], axis=1)
