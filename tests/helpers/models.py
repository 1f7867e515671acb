"""Small models with random weights, in memory or as checkpoint folders, and what tests do with them."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from pg_mlx.checkpoint.layouts import PATCH_KERNEL, weight_specs
from pg_mlx.checkpoint.load import build, load_model
from pg_mlx.checkpoint.open import Checkpoint
from pg_mlx.checkpoint.tensors import Source
from pg_mlx.config import PaliGemmaConfig
from pg_mlx.errors import InputError
from pg_mlx.paligemma import PaliGemma

Json = dict[str, Any]
Tensors = dict[str, mx.array]

FAMILIES = ("gemma", "gemma2")
VOCAB = 96

_TEXT = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             head_dim=16, vocab_size=VOCAB)  # fmt: skip
_GEMMA2 = dict(query_pre_attn_scalar=12, attn_logit_softcapping=4.0, final_logit_softcapping=9.0, sliding_window=5)
_VISION = dict(hidden_size=24, intermediate_size=28, num_hidden_layers=1, num_attention_heads=2, image_size=28)


def config_json(family: str, text: Json | None = None, vision: Json | None = None, **top: Any) -> Json:
    """A config.json: 4 image tokens, 3 text layers, 96 vocabulary rows, unless told otherwise."""
    gemma2 = _GEMMA2 if family == "gemma2" else {}
    return {
        "model_type": "paligemma",
        "text_config": {"model_type": family, **_TEXT, **gemma2, **(text or {})},
        "vision_config": {"model_type": "siglip_vision_model", **_VISION, **(vision or {})},
        **top,
    }


def wide_config_json(family: str) -> Json:
    """Widths that 64 divides, but for the vision MLP, as in the real models (1152 wide, MLP 4304)."""
    text = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, head_dim=32)
    return config_json(family, text, dict(hidden_size=128, intermediate_size=76))


def random_tensors(raw: Json, seed: int = 0) -> Tensors:
    """Canonical float32 tensors for a config.json, of sizes that keep activations near one."""
    key = mx.random.key(seed)
    tensors = {}
    for spec in weight_specs(PaliGemmaConfig.from_dict(raw)):
        for name, shape in spec.expected():
            key, own = mx.random.split(key)
            deviation = spec.columns**-0.5 if len(shape) > 1 else 0.2
            tensors[name] = mx.random.normal(shape, key=own) * deviation
    mx.eval(tensors)
    return tensors


class Memory(Source):
    """A checkpoint in memory, under canonical names."""

    def __init__(self, tensors: Tensors):
        self.tensors = tensors
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}

    def read(self, name: str) -> mx.array:
        return self.tensors[name]

    def stored_bytes(self, name: str) -> int:
        return self.tensors[name].nbytes


def model_of(raw: Json, tensors: Tensors, dtype: str = "float32") -> PaliGemma:
    return build(Checkpoint.of(Memory(tensors), raw), dtype)


def load_packed(folder: Path, **options: Any) -> PaliGemma:
    """load_model for tests that want to multiply quantized weights; the CPU would hold small ones in float32."""
    return load_model(folder, keep_quantized=True, **options)


def tiny(family: str, seed: int = 0, *, window: bool = False, **text: Any) -> PaliGemma:
    """A random model in float32, with its sliding window switched on or off."""
    raw = config_json(family, text)
    model = model_of(raw, random_tensors(raw, seed))
    model.use_sliding_window = window
    return model


def write_folder(folder: Path, raw: Json, tensors: Tensors) -> Path:
    """A checkpoint folder with one weight file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    return folder


def channels_second(tensors: Tensors) -> Tensors:
    """The patch kernel as PyTorch keeps it: [out, in, height, width]."""
    return {name: tensor.transpose(0, 3, 1, 2) if name == PATCH_KERNEL else tensor for name, tensor in tensors.items()}


def quantized(
    raw: Json,
    tensors: Tensors,
    chosen: Callable[[str, mx.array], bool],
    bits: int = 4,
    group_size: int = 64,
    mode: str = "affine",
) -> tuple[Json, Tensors, Tensors]:
    """config.json and tensors with the chosen matrices packed, and the floats that the packed ones stand for."""
    raw = copy.deepcopy(raw)
    raw["quantization"] = dict(bits=bits, group_size=group_size, mode=mode)
    packed, floats = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and tensor.ndim == 2 and chosen(module, tensor):
            arrays = mx.quantize(tensor, group_size=group_size, bits=bits, mode=mode)
            packed |= {f"{module}.{part}": a for part, a in zip(("weight", "scales", "biases"), arrays, strict=False)}
            floats[name] = mx.dequantize(*arrays, group_size=group_size, bits=bits, mode=mode, dtype=mx.float32)
    return raw, packed, floats


def pictures(model: PaliGemma, batch: int = 1, seed: int = 0) -> mx.array:
    """Features of random pictures."""
    side = model.config.vision.image_size
    return model.encode_image(mx.random.uniform(-1, 1, (batch, side, side, 3), key=mx.random.key(seed)))


def random_ids(batch: int, length: int, seed: int = 0) -> mx.array:
    return mx.random.randint(0, VOCAB, (batch, length), key=mx.random.key(seed))


def text_logits(model: PaliGemma, seed: int = 0) -> mx.array:
    """Logits of one random picture and a random text: what two equal models agree on."""
    return model.logits(pictures(model, seed=seed), random_ids(1, 5, seed), random_ids(1, 3, seed + 1))


def greedy(
    model: PaliGemma, features: mx.array, prefix: mx.array, steps: int, lengths: list[int] | None = None
) -> tuple[mx.array, mx.array]:
    """The most likely tokens [B, steps], and the logits [B, steps, V] that chose them."""
    capacity = features.shape[1] + prefix.shape[1] + steps
    logits, cache = model.prefill(features, prefix, capacity=capacity, prefix_lengths=lengths)
    tokens, all_logits = [mx.argmax(logits, axis=-1)], [logits]
    while len(tokens) < steps:
        logits, cache = model.step(tokens[-1], cache)
        tokens.append(mx.argmax(logits, axis=-1))
        all_logits.append(logits)
    return mx.stack(tokens, axis=1), mx.stack(all_logits, axis=1)


def note_widths(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """The number of rows in each call of a method of the model."""
    method, widths = getattr(PaliGemma, name), list[int]()

    def noting(self: PaliGemma, first: mx.array, *args: object, **kwargs: object) -> object:
        widths.append(first.shape[0])
        return method(self, first, *args, **kwargs)

    monkeypatch.setattr(PaliGemma, name, noting)
    return widths


def distance(actual: mx.array, expected: mx.array) -> float:
    """The largest absolute difference; equal shapes and no NaN."""
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    return mx.abs(actual.astype(mx.float32) - expected.astype(mx.float32)).max().item()


def same(actual: mx.array, expected: mx.array) -> bool:
    """Bit by bit."""
    return actual.dtype == expected.dtype and mx.array_equal(actual, expected).item()


@contextmanager
def one_line_error(*mentioned: str) -> Iterator[None]:
    """An InputError of one line that mentions all of these."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message, f"several lines: {message!r}"
    for word in mentioned:
        assert word in message, f"{word!r} is not in {message!r}"
