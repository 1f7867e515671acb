"""The original checkpoints: big_vision's .npz archives, translated to canonical tensors.

JAX keeps its matrices as [inputs..., outputs...] with heads as dimensions of their own, and stacks all layers of a kind
into one array. Each canonical tensor is therefore a piece: one index into the stack, dimensions
reordered, and neighbouring ones merged. Names: big_vision `models/vit.py`, `models/ppp/gemma.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..files.npz import NpzArchive
from .layouts import CONNECTOR, TEXT, VISION
from .tensors import Source

_ROOTS = ("params/", "opt/target/", "")
"""Where the parameters are in an archive, in the order in which big_vision looks: a training state of today or of the
past, or the parameters alone, as the fine-tuning notebook saves them."""

_DTYPES = {"f2": mx.float16, "V2": mx.bfloat16}
"""NumPy's names of what is not read as float32. It has no bfloat16, and calls its two bytes void."""


@dataclass(frozen=True)
class StackPiece:
    """archive[key][index], its dimensions regrouped: groups ((0, 2), (1,)) turns [N, D, H] into [N * H, D]."""

    key: str
    index: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]


class BigVisionArchive(Source):
    """The tensors of a big_vision archive. Optimizer state and masks beside the parameters are ignored.

    Raises InputError if the archive is broken or is not a PaliGemma.
    """

    def __init__(self, path: Path):
        self._archive = NpzArchive(path)
        known = self._archive.members
        self._root = next((root for root in _ROOTS if f"{root}img/pos_embedding" in known), _ROOTS[0])
        self._dims = {key.removeprefix(self._root): m.shape for key, m in known.items() if key.startswith(self._root)}
        missing = {"img/pos_embedding", "llm/embedder/input_embedding", "img/head/kernel"} - set(self._dims)
        if missing:
            raise InputError(f"{path} is not a PaliGemma archive: it lacks {self._root}{min(missing)}")
        try:
            self._pieces = dict(_pieces(self._dims))
            self.shapes = {name: self._shape(piece) for name, piece in self._pieces.items()}
            self._config = self._read_config()
        except (KeyError, IndexError, ValueError, StopIteration, ZeroDivisionError) as error:
            raise InputError(f"{path} is not a PaliGemma archive as the original code writes it: {error}") from None

    @property
    def float_dtype(self) -> mx.Dtype:
        """The dtype of its numbers: float32 where it has several, as when some were trained and the others frozen."""
        members = (self._archive.members[f"{self._root}{piece.key}"] for piece in self._pieces.values())
        stored = {_DTYPES.get(member.dtype.str[1:], mx.float32) for member in members}
        return stored.pop() if len(stored) == 1 else mx.float32

    def read(self, name: str) -> mx.array:
        """The tensor in the archive's dtype (float64 as float32), evaluated; only its piece of the stack is read."""
        piece = self._pieces[name]
        array = self._archive.read(f"{self._root}{piece.key}")[piece.index]
        order = [axis for group in piece.groups for axis in group]
        array = np.ascontiguousarray(array.transpose(order)).reshape(self.shapes[name])
        if array.dtype.kind == "V":  # numpy has no bfloat16 and calls its two bytes void
            return mx.array(array.view(np.uint16)).view(mx.bfloat16)
        if array.dtype.kind == "f" and array.dtype.itemsize > 4:
            array = array.astype(np.float32)
        return mx.array(array)

    def stored_bytes(self, name: str) -> int:
        """The size of a tensor in the archive, unpacked."""
        member = self._archive.members[f"{self._root}{self._pieces[name].key}"]
        return prod(self.shapes[name]) * member.dtype.itemsize

    def _shape(self, piece: StackPiece) -> tuple[int, ...]:
        dims = self._dims[piece.key][len(piece.index) :]
        if sum(map(len, piece.groups)) != len(dims):
            raise ValueError(f"{piece.key} has {len(dims)} dimensions")
        return tuple(prod(dims[axis] for axis in group) for group in piece.groups)

    def config(self) -> dict[str, Any]:
        """A complete config.json, made from the shapes. What shapes do not say is as in all published models."""
        return self._config

    def _read_config(self) -> dict[str, Any]:
        layers, heads, head_dim, width = self._dims["llm/layers/attn/attn_vec_einsum/w"]
        kv_heads = self.shapes[f"{TEXT}.layers.0.self_attn.k_proj.weight"][0] // head_dim
        gemma2 = "llm/layers/post_ffw_norm/scale" in self._dims
        vision_heads = next(dims[-2] for key, dims in self._dims.items() if key.endswith("_0/query/kernel"))
        side = self._dims["img/embedding/kernel"][0]
        positions = self.shapes[f"{VISION}.embeddings.position_embedding.weight"]
        text: dict[str, Any] = {
            "model_type": "gemma2" if gemma2 else "gemma",
            "hidden_size": width,
            "intermediate_size": self.shapes[f"{TEXT}.layers.0.mlp.gate_proj.weight"][0],
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "vocab_size": self._dims["llm/embedder/input_embedding"][0],
        }
        if gemma2:  # only the 28B model scales by hidden_size / heads instead of head_dim
            text["query_pre_attn_scalar"] = width // heads if (width, head_dim) == (4608, 128) else head_dim
            text |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096}
        return {
            "model_type": "paligemma",
            "hidden_size": width,
            "projection_dim": width,
            "image_token_index": 257152,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "text_config": text,
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": positions[1],
                "intermediate_size": self.shapes[f"{VISION}.encoder.layers.0.mlp.fc1.weight"][0],
                "num_hidden_layers": sum(name.endswith("fc1.weight") for name in self.shapes),
                "num_attention_heads": vision_heads,
                "image_size": round(positions[0] ** 0.5) * side,
                "patch_size": side,
            },
        }


_VECTOR = ((0,),)
_TRANSPOSED = ((1,), (0,))


def _pieces(dims: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, StackPiece]]:
    yield (
        f"{VISION}.embeddings.patch_embedding.weight",
        StackPiece("img/embedding/kernel", (), ((3,), (0,), (1,), (2,))),
    )
    yield f"{VISION}.embeddings.patch_embedding.bias", StackPiece("img/embedding/bias", (), _VECTOR)
    yield f"{VISION}.embeddings.position_embedding.weight", StackPiece("img/pos_embedding", (0,), ((0,), (1,)))
    yield from _vision_layers(dims)
    yield from _norm(f"{VISION}.post_layernorm", "img/Transformer/encoder_norm", ())
    yield f"{CONNECTOR}.weight", StackPiece("img/head/kernel", (), _TRANSPOSED)
    yield f"{CONNECTOR}.bias", StackPiece("img/head/bias", (), _VECTOR)
    yield f"{TEXT}.embed_tokens.weight", StackPiece("llm/embedder/input_embedding", (), ((0,), (1,)))
    yield f"{TEXT}.norm.weight", StackPiece("llm/final_norm/scale", (), _VECTOR)
    yield from _text_layers(dims)


def _norm(name: str, key: str, index: tuple[int, ...]) -> Iterator[tuple[str, StackPiece]]:
    yield f"{name}.weight", StackPiece(f"{key}/scale", index, _VECTOR)
    yield f"{name}.bias", StackPiece(f"{key}/bias", index, _VECTOR)


def _vision_layers(dims: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, StackPiece]]:
    root = "img/Transformer/encoderblock"
    stacked = f"{root}/LayerNorm_0/scale" in dims
    if stacked:
        layers = dims[f"{root}/LayerNorm_0/scale"][0]
    else:
        layers = sum(key.startswith(f"{root}_") and key.endswith("/LayerNorm_0/scale") for key in dims)
    for i in range(layers):
        key, index = (root, (i,)) if stacked else (f"{root}_{i}", ())
        name = f"{VISION}.encoder.layers.{i}"
        attention = f"{key}/MultiHeadDotProductAttention_0"
        yield from _norm(f"{name}.layer_norm1", f"{key}/LayerNorm_0", index)
        yield from _norm(f"{name}.layer_norm2", f"{key}/LayerNorm_1", index)
        for part in ("query", "key", "value"):
            projection = f"{name}.self_attn.{part[0]}_proj"
            yield f"{projection}.weight", StackPiece(f"{attention}/{part}/kernel", index, ((1, 2), (0,)))
            yield f"{projection}.bias", StackPiece(f"{attention}/{part}/bias", index, ((0, 1),))
        yield f"{name}.self_attn.out_proj.weight", StackPiece(f"{attention}/out/kernel", index, ((2,), (0, 1)))
        yield f"{name}.self_attn.out_proj.bias", StackPiece(f"{attention}/out/bias", index, _VECTOR)
        for number, layer in ((0, "fc1"), (1, "fc2")):
            dense = f"{key}/MlpBlock_0/Dense_{number}"
            yield f"{name}.mlp.{layer}.weight", StackPiece(f"{dense}/kernel", index, _TRANSPOSED)
            yield f"{name}.mlp.{layer}.bias", StackPiece(f"{dense}/bias", index, _VECTOR)


def _text_layers(dims: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, StackPiece]]:
    root = "llm/layers"
    gemma2 = f"{root}/post_ffw_norm/scale" in dims
    norms = {"pre_attention_norm": "input_layernorm", "pre_ffw_norm": "post_attention_layernorm"}
    if gemma2:
        norms |= {"pre_ffw_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm"}
        norms |= {"post_ffw_norm": "post_feedforward_layernorm"}
    gating = dims[f"{root}/mlp/gating_einsum"]
    # [F, D] instead of [D, F], as Gemma's own releases have it. mlp/linear is [F, D] everywhere. If F equals D, shapes
    # do not say which it is; then it is as big_vision writes it.
    flipped = gating[-2:] == dims[f"{root}/mlp/linear"][-2:] and gating[-2] != gating[-1]
    heads = ((0, 2), (1,))  # [heads, D, head_dim] -> [heads * head_dim, D]
    for i in range(gating[0]):
        name = f"{TEXT}.layers.{i}"
        if f"{root}/attn/qkv_einsum/w" in dims:  # as many key heads as query heads; no published PaliGemma
            places: list[tuple[str, tuple[int, ...]]]
            places = [(f"{root}/attn/qkv_einsum/w", (i, part)) for part in range(3)]
        else:
            kv = f"{root}/attn/kv_einsum/w"
            places = [(f"{root}/attn/q_einsum/w", (i,)), (kv, (i, 0)), (kv, (i, 1))]
        for part, (key, index) in zip("qkv", places, strict=True):
            yield f"{name}.self_attn.{part}_proj.weight", StackPiece(key, index, heads)
        yield f"{name}.self_attn.o_proj.weight", StackPiece(f"{root}/attn/attn_vec_einsum/w", (i,), ((2,), (0, 1)))
        for number, part in enumerate(("gate", "up")):
            groups = ((0,), (1,)) if flipped else _TRANSPOSED
            yield f"{name}.mlp.{part}_proj.weight", StackPiece(f"{root}/mlp/gating_einsum", (i, number), groups)
        yield f"{name}.mlp.down_proj.weight", StackPiece(f"{root}/mlp/linear", (i,), _TRANSPOSED)
        for norm, stored in norms.items():
            yield f"{name}.{stored}.weight", StackPiece(f"{root}/{norm}/scale", (i,), _VECTOR)
