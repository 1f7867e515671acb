"""The tables that join the names in checkpoint files to the parameters of the model.

Files arrive in several layouts. `canonical_name` brings each key to the one that the published PaliGemma
repositories use, which is also the one we write. `weight_specs` then says, for every parameter of the model, which
canonical tensors it is made of: this is the only place that knows both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Literal

from ..config import PaliGemmaConfig
from ..errors import InputError

TEXT = "language_model.model"
VISION = "vision_tower.vision_model"
CONNECTOR = "multi_modal_projector.linear"
EMBEDDING = f"{TEXT}.embed_tokens"
HEAD = "language_model.lm_head"
FINAL_NORM = f"{TEXT}.norm.weight"
PATCH_KERNEL = f"{VISION}.embeddings.patch_embedding.weight"

_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, anywhere."""

_MAX_NAME = 300
"""Characters of a tensor's name in which a prefix is looked for."""

_IGNORED = re.compile(r"position_ids$|rotary_emb\.inv_freq$|vision_model\.head\.")


def canonical_name(key: str) -> str | None:
    """The classic name of a tensor from any layout, or None for one that no model needs.

    transformers >= 4.52 writes `model.language_model.X` for `language_model.model.X` and `model.` before
    the other two; its 5.x line also drops `vision_model.`.
    """
    key = _WRAPPERS.sub("", key)
    name = re.sub(r"^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.)", "", key)
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    name = re.sub(r"^language_model\.(?!model\.|lm_head\.)", f"{TEXT}.", name)
    name = re.sub(r"^vision_tower\.(?!vision_model\.)", f"{VISION}.", name)
    return None if _IGNORED.search(name) else name


def wrapper_prefix(place: str, keys: Iterable[str]) -> str:
    """What a program that wraps the model has put before every name, as "module." or "paligemma."; "" for nothing.

    It is what stands before the final norm. place: what messages call the checkpoint. Raises InputError if the norm is
    there under several prefixes, so that there are several models.
    """
    found: set[str] = set()
    for key in keys:
        if key.endswith("norm.weight") and len(key) <= _MAX_NAME:
            starts = (0, *(match.end() for match in re.finditer(r"\.", key)))
            found |= set(next(([key[:start]] for start in starts if canonical_name(key[start:]) == FINAL_NORM), []))
    if "" in found:
        return ""
    if len(found) > 1:
        one, other = sorted(found)[:2]
        raise InputError(f"{place} holds several models: names begin with {one!r} and with {other!r}")
    return found.pop() if found else ""


def vision_mlp_axis(module: str) -> int | None:
    """Which axis of a module's weight is as long as SigLIP's MLP is wide: 0 in fc1, 1 in fc2, None in all others.

    That width may be padded (4304 -> 4352; quantization/padding.py), in a checkpoint or by a conversion.
    """
    return {"fc1": 0, "fc2": 1}.get(module.rpartition(".mlp.")[2]) if module.startswith(VISION) else None


def has_channels_second(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is the patch kernel in PyTorch's order [out, in, height, width]. Canonical is MLX's order,
    [out, height, width, in]."""
    return name == PATCH_KERNEL and len(shape) == 4 and shape[-1] != 3


@dataclass(frozen=True)
class WeightSpec:
    """One module (or plain array) of the model and the canonical modules it is assembled from."""

    target: str
    """Its path in the model, as "language_model.layers.0.mlp.gate_up_proj"."""
    sources: tuple[str, ...]
    """Canonical modules, stacked in this order."""
    kind: Literal["linear", "embedding", "layer_norm", "rms_norm", "patches", "array"]
    rows: tuple[int, ...]
    """Rows of each source."""
    columns: int = 0
    """Columns of each source; 0 for a vector."""
    bias: bool = False

    def expected(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the float tensors it needs."""
        for source, rows in zip(self.sources, self.rows, strict=True):
            if self.kind == "patches":
                side = isqrt(self.columns // 3)
                yield f"{source}.weight", (rows, side, side, 3)
            else:
                yield f"{source}.weight", (rows, self.columns) if self.columns else (rows,)
            if self.bias:
                yield f"{source}.bias", (rows,)


def weight_specs(config: PaliGemmaConfig) -> Iterator[WeightSpec]:
    """Every parameter of the model, in the order it computes."""
    yield from _vision_specs(config)
    yield WeightSpec(
        "connector.linear",
        (CONNECTOR,),
        "linear",
        (config.text.hidden_size,),
        config.vision.hidden_size,
        True,
    )
    yield from _text_specs(config)


def _vision_specs(config: PaliGemmaConfig) -> Iterator[WeightSpec]:
    vision = config.vision
    width, mlp = vision.hidden_size, vision.intermediate_size
    patch = 3 * vision.patch_size**2
    embeddings = f"{VISION}.embeddings"
    yield WeightSpec(
        "vision_tower.patch_embedding", (f"{embeddings}.patch_embedding",), "patches", (width,), patch, True
    )
    yield WeightSpec(
        "vision_tower.position_embedding",
        (f"{embeddings}.position_embedding",),
        "array",
        (vision.num_patches,),
        width,
    )
    for i in range(vision.num_hidden_layers):
        to, of = f"vision_tower.layers.{i}", f"{VISION}.encoder.layers.{i}"
        qkv = tuple(f"{of}.self_attn.{part}_proj" for part in "qkv")
        yield WeightSpec(f"{to}.layer_norm1", (f"{of}.layer_norm1",), "layer_norm", (width,), bias=True)
        yield WeightSpec(f"{to}.self_attn.qkv_proj", qkv, "linear", (width,) * 3, width, True)
        yield WeightSpec(f"{to}.self_attn.out_proj", (f"{of}.self_attn.out_proj",), "linear", (width,), width, True)
        yield WeightSpec(f"{to}.layer_norm2", (f"{of}.layer_norm2",), "layer_norm", (width,), bias=True)
        yield WeightSpec(f"{to}.mlp.fc1", (f"{of}.mlp.fc1",), "linear", (mlp,), width, True)
        yield WeightSpec(f"{to}.mlp.fc2", (f"{of}.mlp.fc2",), "linear", (width,), mlp, True)
    yield WeightSpec("vision_tower.post_layernorm", (f"{VISION}.post_layernorm",), "layer_norm", (width,), bias=True)


_GEMMA1_NORMS = {"pre_attention_norm": "input_layernorm", "pre_mlp_norm": "post_attention_layernorm"}
_GEMMA2_NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",  # the name that means the pre-MLP norm in Gemma 1
    "pre_mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def _text_specs(config: PaliGemmaConfig) -> Iterator[WeightSpec]:
    text = config.text
    width, mlp = text.hidden_size, text.intermediate_size
    query, key = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    yield WeightSpec("language_model.embed_tokens", (EMBEDDING,), "embedding", (text.vocab_size,), width)
    for i in range(text.num_hidden_layers):
        to, of = f"language_model.layers.{i}", f"{TEXT}.layers.{i}"
        qkv = tuple(f"{of}.self_attn.{part}_proj" for part in "qkv")
        yield WeightSpec(f"{to}.self_attn.qkv_proj", qkv, "linear", (query, key, key), width)
        yield WeightSpec(f"{to}.self_attn.o_proj", (f"{of}.self_attn.o_proj",), "linear", (width,), query)
        gate_up = (f"{of}.mlp.gate_proj", f"{of}.mlp.up_proj")
        yield WeightSpec(f"{to}.mlp.gate_up_proj", gate_up, "linear", (mlp, mlp), width)
        yield WeightSpec(f"{to}.mlp.down_proj", (f"{of}.mlp.down_proj",), "linear", (width,), mlp)
        for norm, stored in (_GEMMA2_NORMS if text.is_gemma2 else _GEMMA1_NORMS).items():
            yield WeightSpec(f"{to}.{norm}", (f"{of}.{stored}",), "rms_norm", (width,))
    yield WeightSpec("language_model.norm", (f"{TEXT}.norm",), "rms_norm", (width,))
    if not config.tie_word_embeddings:
        yield WeightSpec("language_model.lm_head", (HEAD,), "embedding", (text.vocab_size,), width)


def infer_dimensions(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Fields of config.json (config.INFERRED_NAMES) that follow from the shapes of canonical tensors.

    A quantized matrix keeps its number of rows, so only rows and vectors are used.
    """

    def rows(name: str) -> int | None:
        shape = shapes.get(f"{name}.weight")
        return shape[0] if shape else None

    def layers(prefix: str) -> int | None:
        start = f"{prefix}.layers."
        numbers = {name.removeprefix(start).partition(".")[0] for name in shapes if name.startswith(start)}
        return sum(number.isascii() and number.isdigit() for number in numbers) or None

    kernel = shapes.get(PATCH_KERNEL)
    patch = (kernel[1] or None) if kernel and len(kernel) == 4 else None
    positions = rows(f"{VISION}.embeddings.position_embedding")
    inferred = {
        "text_config.hidden_size": rows(f"{TEXT}.norm"),
        "text_config.intermediate_size": rows(f"{TEXT}.layers.0.mlp.gate_proj"),
        "text_config.num_hidden_layers": layers(TEXT),
        "text_config.vocab_size": rows(EMBEDDING),
        "text_config.query_width": rows(f"{TEXT}.layers.0.self_attn.q_proj"),
        "text_config.key_width": rows(f"{TEXT}.layers.0.self_attn.k_proj"),
        "vision_config.hidden_size": rows(f"{VISION}.post_layernorm"),
        "vision_config.intermediate_size": rows(f"{VISION}.encoder.layers.0.mlp.fc1"),
        "vision_config.num_hidden_layers": layers(f"{VISION}.encoder"),
        "vision_config.patch_size": patch,
        "vision_config.image_size": isqrt(positions) * patch if positions and patch else None,
    }
    return {name: value for name, value in inferred.items() if value is not None}
