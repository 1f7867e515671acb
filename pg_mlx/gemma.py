"""The Gemma 1 and Gemma 2 decoders, as PaliGemma uses them.

Gemma team 2024 (arXiv 2403.08295, 2408.00118); code: big_vision `models/ppp/gemma.py`. What differs between
the two: Gemma 2 normalises after attention and MLP as well as before, caps attention scores and final
logits with a scaled tanh, and sets the score scale independently of head_dim.

Letters of shapes: B batch rows, T tokens of one pass, L keys (cache slots in use), D decoder width, V vocabulary;
`heads` query heads, `kv_heads` heads of keys and values, `head_dim` the width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .cache import CacheUpdate, KVCache
from .config import TextConfig
from .linear import Embedding, Ids, Linear, unpacks_any
from .ops import device, metal_kernels
from .ops.attention import attention
from .ops.blocks import tokens_in_blocks
from .ops.gelu import geglu
from .residual import Residual, RMSNorm


@device.fused
def cap_logits(x: mx.array, cap: float, scale: float = 1.0) -> mx.array:
    """x [...] -> cap * tanh(x * scale / cap) [...] in float32."""
    return cap * mx.tanh(x.astype(mx.float32) * (scale / cap))


@device.fused
def scaled(x: mx.array, factor: float, dtype: str) -> mx.array:
    """x [...] -> x * factor [...], computed in float32 and rounded once to the dtype of this name."""
    return (x.astype(mx.float32) * factor).astype(getattr(mx, dtype))


class Attention(nn.Module):
    """Attention of one layer, several query heads to each head of keys and values.

    The plain formula, for x [B, T, D] at positions 0..T-1, which the methods here compute in fewer and larger steps:

        q, k, v  = x @ Wq.T, x @ Wk.T, x @ Wv.T           cut into heads, [B, heads or kv_heads, T, head_dim]
        q, k     = rotate(q, positions), rotate(k, positions)
        k, v     = each head of k and v for heads / kv_heads heads of q
        scores   = (q @ k.T) * query_pre_attn_scalar ** -0.5           [B, heads, T, T]
        scores   = softcap * tanh(scores / softcap)                    Gemma 2 only
        scores   = where(mask, scores, -infinity)
        mixed    = softmax(scores) @ v                                 [B, heads, T, head_dim]
        result   = concatenate(heads of mixed) @ Wo.T                  [B, T, D]

    The steps: `project*` is the first two lines (with one matrix for Wq, Wk and Wv), `attend` is the rest. There are
    three ways to project: `project` for all tokens, `project_last` where only the last token's query is of use, and
    `project_new` for tokens that follow a cache.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = config.query_pre_attn_scalar**-0.5
        self.softcap = config.attn_logit_softcapping
        self.rope_theta = config.rope_theta
        outputs = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = Linear(config.hidden_size, outputs)
        self.o_proj = Linear(self.heads * self.head_dim, config.hidden_size)

    def project(self, x: mx.array, offset: int | mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x [B, T, D] at positions offset.. -> rotated query [B, heads, T, head_dim] and key, and value
        [B, kv_heads, T, head_dim]."""
        projected = self._heads(self.qkv_proj(x))
        rotated = self._rotate(projected[:, : self.heads + self.kv_heads], offset)
        return rotated[:, : self.heads], rotated[:, self.heads :], projected[:, self.heads + self.kv_heads :]

    def project_last(self, x: mx.array, x_last: mx.array, last: int | mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """As `project`: keys and values of all of x [B, T, D], but only the query of x_last [B, 1, D].

        last: the position of x_last, one for all rows or an int32 [B].
        """
        first_key = self.heads * self.head_dim
        query = self._heads(self.qkv_proj.outputs(0, first_key)(x_last))
        projected = self._heads(self.qkv_proj.outputs(first_key, first_key + 2 * self.kv_heads * self.head_dim)(x))
        key, value = projected[:, : self.kv_heads], projected[:, self.kv_heads :]
        return self._rotate(query, last), self._rotate(key, 0), value

    def project_new(self, x: mx.array, angles: mx.array) -> tuple[mx.array, mx.array]:
        """x [B, T, D], the next tokens of each row -> rotated query [B, heads, T, head_dim], and what the cache keeps:
        rotated keys and values [B, T, 2 * kv_heads, head_dim].

        angles: from the method of that name. They let one call rotate everything: values by the angle of position 0,
        which leaves them as they are.
        """
        batch, length, _ = x.shape
        rotated = self._rotate(self.qkv_proj(x).reshape(-1, 1, self.head_dim), angles)
        rotated = rotated.reshape(batch, length, -1, self.head_dim)
        return rotated[:, :, : self.heads].swapaxes(1, 2), rotated[:, :, self.heads :]

    def angles(self, positions: np.ndarray) -> mx.array:
        """positions int32 [B, T] -> int32 [B * T * (heads + 2 * kv_heads)]: by how many positions `project_new` rotates
        each head of q, k and v of each token."""
        angles = np.zeros((*positions.shape, self.heads + 2 * self.kv_heads), np.int32)
        angles[..., : self.heads + self.kv_heads] = positions[..., None]
        return mx.array(angles.reshape(-1))

    def attend(self, query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None) -> mx.array:
        """query [B, heads, T, head_dim], key and value [B, kv_heads, L, head_dim] -> [B, T, D].

        mask: bool, broadcastable to [B, 1, T, L], True where a query may see a key; None for everywhere.
        """
        return self._output(attention(query, key, value, mask, scale=self.scale, softcap=self.softcap))

    def attend_cached(self, query: mx.array, layer: mx.array, new: CacheUpdate, window: int | None) -> mx.array:
        """As `attend`: query [B, heads, T, head_dim] of the tokens that `new` has written into a layer's buffer."""
        slots = new.causal_slots(window) if self.head_dim % 32 == 0 and metal_kernels.wanted("capped") else None
        if slots is not None and self.softcap is not None:
            return self._output(metal_kernels.capped(query, layer, slots, self.scale, self.softcap))
        return self.attend(query, *new.visible(layer, window), new.mask(window))

    def _output(self, mixed: mx.array) -> mx.array:
        """[B, heads, T, head_dim] -> [B, T, D]."""
        batch, _, length, _ = mixed.shape
        return self.o_proj(mixed.swapaxes(1, 2).reshape(batch, length, -1))

    def _heads(self, x: mx.array) -> mx.array:
        batch, length, _ = x.shape
        return x.reshape(batch, length, -1, self.head_dim).swapaxes(1, 2)

    def _rotate(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(x, self.head_dim, traditional=False, base=self.rope_theta, scale=1.0, offset=offset)


class MLP(nn.Module):
    """down(gelu(gate(x)) * up(x)): x [B, T, D] -> [B, T, D]. Gate and up are one projection."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.width = 2 * config.intermediate_size
        self.gate_up_proj = Linear(config.hidden_size, self.width)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        """x [B, T, D] -> [B, T, D]. The CPU backend takes some tokens at a time, to bound memory."""
        return tokens_in_blocks(self._some, x, self.width)

    def _some(self, x: mx.array) -> mx.array:
        gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(geglu(gate, up))


class Block(nn.Module):
    """One layer. The norms are named by what they do, since Gemma 1 and 2 checkpoints give the name
    `post_attention_layernorm` to different ones."""

    def __init__(self, config: TextConfig):
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps)

        self.pre_attention_norm = norm()
        self.self_attn = Attention(config)
        self.pre_mlp_norm = norm()
        self.mlp = MLP(config)
        if config.is_gemma2:
            self.post_attention_norm = norm()
            self.post_mlp_norm = norm()

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        """All positions at once: x [B, T, D], mask bool [B, 1, T, T] (None: every token sees every other)."""
        query, key, value = self.self_attn.project(self.pre_attention_norm(x), 0)
        return self.finish(x, self.self_attn.attend(query, key, value, mask)).hidden

    def finish(self, x: mx.array, attended: mx.array) -> Residual:
        """Both residual additions and the MLP: x [B, T, D] before the layer, attended [B, T, D] from attention."""
        hidden, normed = Residual(x, attended, self.get("post_attention_norm")).then(self.pre_mlp_norm)
        return Residual(hidden, self.mlp(normed), self.get("post_mlp_norm"))


class Gemma(nn.Module):
    """The decoder: inputs [B, T, D] -> hidden states [B, T, D] after the final norm. Positions count from 0 in a row.

    dtype: of activations and cache. use_sliding_window, layers_at_once: see PaliGemma. continues: other layers follow
    elsewhere (parallel/), so all of the residual stream leaves, without the norm.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        dtype: mx.Dtype = mx.float32,
        use_sliding_window: bool = False,
        layers_at_once: int | None = None,
        tied: bool = True,
    ):
        super().__init__()
        self.config, self.dtype, self.continues = config, dtype, False
        self.use_sliding_window, self.layers_at_once = use_sliding_window, layers_at_once
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Block(config) for _ in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not tied:
            self.lm_head = Embedding(config.vocab_size, config.hidden_size)

    @property
    def head_table(self) -> Embedding:
        """The output head: the embedding, unless fine-tuning has made it a table of its own."""
        return self.lm_head if "lm_head" in self else self.embed_tokens

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer in tokens, or None for full attention. It is always None unless
        `use_sliding_window` is set: the original code trained and runs without windows."""
        slides = self.use_sliding_window and self.config.sliding_layers[layer]
        return self.config.sliding_window if slides else None

    def embed(self, ids: mx.array) -> mx.array:
        """ids int [B, T] -> [B, T, D], scaled by sqrt(D) in float32 and rounded once."""
        return scaled(self.embed_tokens(ids), self.config.hidden_size**0.5, device.dtype_name(self.dtype))

    def head(self, hidden: mx.array, vocab: Ids | None = None, order_only: bool = False) -> mx.array:
        """hidden [..., D] -> float32 logits [..., V], capped where the config says so.

        vocab: compute only the logits of these ids, [..., len(vocab)]. order_only: they need only be in the right
        order. Then 16-bit ones stay as they are, and uncapped; in float32 the cap may make two logits equal.
        """
        logits = self.head_table.as_head(hidden, vocab)
        if order_only and logits.dtype != mx.float32:
            return logits
        cap = self.config.final_logit_softcapping
        return logits.astype(mx.float32) if cap is None else cap_logits(logits, cap)

    def __call__(self, x: mx.array, mask: mx.array | None = None, sliding_mask: mx.array | None = None) -> mx.array:
        """All positions at once, without a cache: x [B, T, D] -> [B, T, D]. Masks as `prefix_lm_mask` makes them."""
        for index, layer in enumerate(self.layers):
            x = layer(x, mask if self.window(index) is None else sliding_mask)
        return self.norm(x)

    def prefill(self, x: mx.array, capacity: int, lengths: Sequence[int] | None = None) -> tuple[mx.array, KVCache]:
        """Read a prefix x [B, T, D] in one piece; every token sees every other.

        capacity: slots of the cache. lengths: how many tokens of each right-padded row are real; None for all. Returns
        the hidden state of each row's last token [B, 1, D] and the cache. A sliding window never acts within a prefix.
        The last layer computes queries, output projection and MLP for that last token only, because nothing else of
        them is ever read.
        """
        batch, length, _ = x.shape
        last: int | mx.array = length - 1
        mask = None
        if lengths is not None:
            used = mx.array(list(lengths), dtype=mx.int32)
            last, mask = used - 1, (mx.arange(length) < used[:, None])[:, None, None]
        layers, state, before = [], Residual(x), list[mx.array]()
        for index, layer in enumerate(self.layers):
            x, normed = state.then(layer.pre_attention_norm)
            if index < len(self.layers) - 1 or self.continues:
                query, key, value = layer.self_attn.project(normed, 0)
            else:
                x, normed_last = take_token(x, last), take_token(normed, last)
                query, key, value = layer.self_attn.project_last(normed, normed_last, last)
            state = layer.finish(x, layer.self_attn.attend(query, key, value, mask))
            room = [(0, 0), (0, 0), (0, 0), (0, capacity - length), (0, 0)]
            layers.append(mx.pad(mx.stack([key, value]), room))
            # One layer after the other. Otherwise the projections of all layers would wait to be copied into the cache,
            # and a GPU would unpack the weights of many layers before the first is done with its own. While it waits
            # for a layer, the next one is begun, so the unpacked weights of two exist.
            waits = self.layers_at_once is not None and (index + 1) % self.layers_at_once == 0
            (device.evaluate if waits else device.evaluate_soon)(*state.arrays, layers[-1])
            if before and unpacks_any(layer, batch * length):
                device.evaluate(*layers[-2:-1], *before)
            before = state.arrays
        hidden = state.hidden if self.continues else state.then(self.norm)[1]
        return hidden, KVCache(tuple(layers), tuple(lengths or [length] * batch))

    def extend(self, x: mx.array, cache: KVCache, counts: Sequence[int] | None = None) -> tuple[mx.array, KVCache]:
        """Append T tokens to every row in one pass: x [B, T, D] -> their hidden states [B, T, D] and the new cache.

        A token sees all that its row has read before, the new tokens before it, and itself. counts: how many of a row's
        T tokens are real, if not all; hidden states of the others have no meaning. Raises InputError when the cache
        has too few slots.
        """
        new = CacheUpdate(cache, x.shape[1], counts)
        angles = self.layers[0].self_attn.angles(new.positions)
        layers, state = [], Residual(x)
        for index, layer in enumerate(self.layers):
            hidden, normed = state.then(layer.pre_attention_norm)
            query, update = layer.self_attn.project_new(normed, angles)
            layers.append(new.write(cache.layers[index], update))
            state = layer.finish(hidden, layer.self_attn.attend_cached(query, layers[-1], new, self.window(index)))
        hidden = state.hidden if self.continues else state.then(self.norm)[1]
        return hidden, KVCache(tuple(layers), new.after, (hidden,))


def take_token(x: mx.array, index: int | mx.array) -> mx.array:
    """x [B, T, D] -> [B, 1, D]: one token of each row, at one index for all or at an int32 [B] of them."""
    if isinstance(index, int):
        return x[:, index : index + 1]
    return mx.take_along_axis(x, index[:, None, None], axis=1)
