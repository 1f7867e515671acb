"""What the parts measure on: models of published shapes with random weights, so that nobody has to fetch any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ...checkpoint.layouts import WeightSpec, weight_specs
from ...checkpoint.load import build
from ...checkpoint.open import Checkpoint
from ...checkpoint.tensors import Source
from ...config import SIZES, PaliGemmaConfig
from ...paligemma import PaliGemma
from ...quantization import Quantization

Json = dict[str, Any]

FAMILIES = ("gemma", "gemma2")
"""PaliGemma 1 and 2 by the types of their decoders."""

_SMALL = dict(hidden_size=128, num_hidden_layers=2, intermediate_size=256, num_attention_heads=4,
              num_key_value_heads=2, head_dim=32)  # fmt: skip

_SMALL_VISION = dict(hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
_VISION = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16)


@dataclass(frozen=True)
class Shapes:
    """Sizes of models, matrices and runs."""

    kind: str
    """The name of these shapes, for a process of its own."""
    text: dict[str, Json]
    """By family: the `text_config` of its model."""
    vision: Json
    vocab: int = 257_216
    unpack_rows: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    """Rows of a product for which unpacking is tried."""
    matrix: tuple[int, int] = (32_768, 2048)
    """Outputs and columns of that product."""
    largest: tuple[tuple[int, int], ...] = ((257_216, 2048), (257_216, 4608), (73_728, 4608))
    """Outputs and columns of the heads of 3B and 28B, and of gate and up of 28B."""
    keys: tuple[int, ...] = (276, 1044, 4116)
    """Tokens of a prefix at 224, 448 and 896 px."""
    chain: int = 2000
    """Small kernels in a row."""
    steps: int = 16
    """Decode steps of one run."""

    @classmethod
    def named(cls, kind: str) -> Shapes:
        """ "published": 3B at 448 px; "quick": the same with few layers; "small": for a machine without a GPU."""
        if kind == "small":
            text = {family: {"model_type": family, **_SMALL} for family in FAMILIES}
            vision = {**_SMALL_VISION, "image_size": 56}
            return cls(kind, text, vision, 2048, (8, 32), (256, 128), ((512, 128),), (20, 40), 40, 3)
        sizes = {"gemma": SIZES["paligemma-3b"], "gemma2": SIZES["paligemma2-3b"]}
        vision = {**_VISION, "image_size": 448}
        if kind == "published":
            return cls(kind, {family: dict(size) for family, size in sizes.items()}, vision)
        text = {family: {**size, "num_hidden_layers": 6} for family, size in sizes.items()}
        vision["num_hidden_layers"] = 4
        return cls(kind, text, vision, unpack_rows=(256, 512, 1024), largest=((257_216, 2048),), keys=(276, 1044))

    def model(self, family: str, dtype: mx.Dtype) -> PaliGemma:
        """A model with random weights: the decoder in 4 bits, its embedding in 6, the tower in `dtype`."""
        raw = self._config(family)
        return build(Checkpoint.of(_Random(raw, dtype), raw), str(dtype).removeprefix("mlx.core."))

    def _config(self, family: str) -> Json:
        vision = {"model_type": "siglip_vision_model", "patch_size": 14, **self.vision}
        embedding = "language_model.model.embed_tokens"
        packing: Json = {"bits": 4, "group_size": 64, embedding: {"bits": 6, "group_size": 64}}
        text = {**self.text[family], "vocab_size": self.vocab}
        return {"model_type": "paligemma", "text_config": text, "vision_config": vision, "quantization": packing}


class _Random(Source):
    """A checkpoint whose tensors are random numbers, made when they are read. Sums keep the size of activations."""

    def __init__(self, raw: Json, dtype: mx.Dtype):
        self._dtype = dtype
        self._made: dict[str, tuple[WeightSpec, tuple[int, ...], Quantization | None]] = {}
        self.shapes = {}
        for spec in weight_specs(PaliGemmaConfig.from_dict(raw)):
            for name, shape in spec.expected():
                packing = self._packing(raw, spec, name)
                for part, own in _stored(name, shape, packing):
                    self._made[part] = (spec, own, packing)
                    self.shapes[part] = own

    @staticmethod
    def _packing(raw: Json, spec: WeightSpec, name: str) -> Quantization | None:
        module = name.removesuffix(".weight")
        if spec.kind not in ("linear", "embedding") or module == name or not name.startswith("language_model"):
            return None
        chosen = raw["quantization"].get(module, raw["quantization"])
        return Quantization(chosen["bits"], chosen["group_size"])

    def read(self, name: str) -> mx.array:
        """The tensor of this name."""
        spec, shape, packing = self._made[name]
        if packing is None:
            deviation = spec.columns**-0.5 if len(shape) > 1 else 0.2
            return (mx.random.normal(shape) * deviation).astype(self._dtype)
        if name.endswith(".weight"):
            high, low = (mx.random.randint(0, 1 << 16, shape, mx.uint32) for _ in range(2))
            return high << 16 | low
        scale = 12**0.5 / (1 << packing.bits) * spec.columns**-0.5
        value = scale if name.endswith(".scales") else -((1 << packing.bits) - 1) / 2 * scale
        return mx.full(shape, value, self._dtype)

    def stored_bytes(self, name: str) -> int:
        """Bytes of the tensor of this name."""
        _, shape, packing = self._made[name]
        count = 1
        for side in shape:
            count *= side
        return count * (4 if packing and name.endswith(".weight") else self._dtype.size)


def _stored(name: str, shape: tuple[int, ...], packing: Quantization | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that a matrix is stored as."""
    if packing is None:
        yield name, shape
        return
    module = name.removesuffix(".weight")
    yield name, (shape[0], shape[1] * packing.bits // 32)
    yield from ((f"{module}.{part}", (shape[0], shape[1] // packing.group_size)) for part in ("scales", "biases"))
