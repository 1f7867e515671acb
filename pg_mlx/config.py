"""The dimensions of a PaliGemma model, read from any config.json that exists in the wild.

A config.json leaves out every field that equals the default of the transformers version that wrote it. So no field is
required here: a missing one is inferred from the tensors where possible, else it is the default of its family. A
field that contradicts the tensors is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InputError

SIZES = {
    "paligemma-3b": dict(model_type="gemma", hidden_size=2048, num_hidden_layers=18, intermediate_size=16384,
                         num_attention_heads=8, num_key_value_heads=1, head_dim=256),
    "paligemma2-3b": dict(model_type="gemma2", hidden_size=2304, num_hidden_layers=26, intermediate_size=9216,
                          num_attention_heads=8, num_key_value_heads=4, head_dim=256),
    "paligemma2-10b": dict(model_type="gemma2", hidden_size=3584, num_hidden_layers=42, intermediate_size=14336,
                           num_attention_heads=16, num_key_value_heads=8, head_dim=256),
    "paligemma2-28b": dict(model_type="gemma2", hidden_size=4608, num_hidden_layers=46, intermediate_size=36864,
                           num_attention_heads=32, num_key_value_heads=16, head_dim=128,
                           query_pre_attn_scalar=144),
}  # fmt: skip
"""The `text_config` of each published size (PaliGemma and PaliGemma 2 papers, tables of the decoder)."""


MAX_LAYERS = 1000
"""More than any model has; a config.json that says more is refused before anything is built."""


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP-So400m/14. Every published PaliGemma has these numbers, except for the image size."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    @property
    def num_patches(self) -> int:
        """Image tokens (N) of one picture: 256, 1024 or 4096 for 224, 448 or 896 pixels."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig:
    """A Gemma 1 or Gemma 2 decoder. Activation is always GELU-tanh, whatever config.json calls it."""

    model_type: str  # "gemma" | "gemma2"
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    query_pre_attn_scalar: float  # scores are scaled by this to the power of -1/2
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window: int | None = None  # in tokens; only used if asked for, see PaliGemma.use_sliding_window
    sliding_layers: tuple[bool, ...] = ()

    @property
    def is_gemma2(self) -> bool:
        """Whether it is a Gemma 2 decoder: post-norms, capped scores and logits."""
        return self.model_type == "gemma2"

    def cache_bytes(self, itemsize: int) -> int:
        """Bytes that the keys and values of one token take in all layers. itemsize: bytes of a number."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * itemsize


@dataclass(frozen=True)
class PaliGemmaConfig:
    """The dimensions of the vision tower and the decoder, and how the weights are quantized."""

    text: TextConfig
    vision: VisionConfig
    tie_word_embeddings: bool = True
    """Whether the output head is the embedding. The tensors decide this, too: see checkpoint.head."""
    image_token_index: int = 257152
    """The placeholder of Hugging Face's prompts; kept for other programs, not used here."""
    quantization: Mapping[str, Any] = field(default_factory=dict)
    """MLX's `quantization` entry: bits, group_size, mode, and overrides by module name. Empty if float."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], inferred: Mapping[str, int] | None = None) -> PaliGemmaConfig:
        """Read a parsed config.json.

        `inferred` holds what the tensors say, under the names of `INFERRED_NAMES`; it fills gaps and is checked
        against the rest. Raises InputError for another model type, a value of the wrong kind, or a
        contradiction, naming both values.
        """
        inferred = inferred or {}
        if not isinstance(raw, Mapping):
            raise InputError("config.json does not hold a JSON object")
        model_type = raw.get("model_type", raw.get("type", "paligemma"))  # "type": LeRobot's
        if model_type != "paligemma":
            raise InputError(f"config.json describes a model of type {model_type!r}, not 'paligemma'")
        text = _Section(raw, "text_config", inferred)
        vision = _Section(raw, "vision_config", inferred)
        return cls(
            text=_read_text(text),
            vision=_read_vision(vision),
            tie_word_embeddings=is_tied(raw),
            image_token_index=_image_token(raw),
            quantization=_read_quantization(raw),
        )


INFERRED_NAMES = (
    *(f"text_config.{name}" for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")),
    "text_config.query_width",
    "text_config.key_width",
    *(f"vision_config.{name}" for name in ("hidden_size", "intermediate_size", "num_hidden_layers")),
    "vision_config.image_size",
    "vision_config.patch_size",
)
"""What tensors can tell. Widths are heads x head_dim, since a tensor cannot say how it is cut into heads."""


def is_tied(raw: Mapping[str, Any]) -> bool:
    """Whether config.json says that the head is the embedding, as in all published models."""
    text = raw.get("text_config") if isinstance(raw, Mapping) else None
    inner = text.get("tie_word_embeddings", True) if isinstance(text, Mapping) else True
    return not isinstance(raw, Mapping) or raw.get("tie_word_embeddings", inner) is not False


class _Section:
    """One of the two nested objects of config.json, with checked access."""

    def __init__(self, raw: Mapping[str, Any], name: str, inferred: Mapping[str, int]):
        value = raw.get(name) or {}
        if not isinstance(value, Mapping):
            raise InputError(f"config.json: {name} is not a JSON object")
        self.raw, self.name, self.inferred = value, name, inferred

    def integer(self, key: str, default: int) -> int:
        """A positive integer: what config.json says, else what the tensors say, else the default."""
        inferred = self.inferred.get(f"{self.name}.{key}")
        value = self.raw.get(key)
        if value is None:
            return inferred if inferred is not None else default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise InputError(f"config.json: {self.name}.{key} is {value!r:.100}, not a positive integer")
        if key == "num_hidden_layers" and value > MAX_LAYERS:
            raise InputError(f"config.json: {self.name}.{key} is {value}, but no model has more than {MAX_LAYERS}")
        if inferred is not None and inferred != value:
            raise InputError(f"config.json says {self.name}.{key} is {value}, but the tensors say {inferred}")
        return value

    def number(self, key: str, default: float) -> float:
        """A positive finite number, or the default where config.json has none."""
        value = self.raw.get(key)
        return _positive(default if value is None else value, f"{self.name}.{key}")

    def softcap(self, key: str, default: float | None) -> float | None:
        """As `number`, but an explicit null switches the cap off."""
        value = self.raw.get(key, default)
        return None if value is None else _positive(value, f"{self.name}.{key}")


def _positive(value: Any, name: str) -> float:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
    if not sound:
        raise InputError(f"config.json: {name} is {value!r:.100}, not a positive number")
    return float(value)


def _read_text(section: _Section) -> TextConfig:
    model_type = section.raw.get("model_type", "gemma")
    if model_type not in ("gemma", "gemma2"):
        raise InputError(f"config.json: text_config.model_type is {model_type!r}, not 'gemma' or 'gemma2'")
    gemma2 = model_type == "gemma2"
    # The defaults of transformers' GemmaConfig and Gemma2Config. head_dim is 256 in both,
    # never hidden_size / num_attention_heads.
    layers = section.integer("num_hidden_layers", 26 if gemma2 else 28)
    head_dim = section.integer("head_dim", 256)
    config = TextConfig(
        model_type=model_type,
        hidden_size=section.integer("hidden_size", 2304 if gemma2 else 3072),
        intermediate_size=section.integer("intermediate_size", 9216 if gemma2 else 24576),
        num_hidden_layers=layers,
        num_attention_heads=_heads(section, "num_attention_heads", "query_width", head_dim, 8 if gemma2 else 16),
        num_key_value_heads=_heads(section, "num_key_value_heads", "key_width", head_dim, 4 if gemma2 else 16),
        head_dim=head_dim,
        vocab_size=section.integer("vocab_size", 257216),
        query_pre_attn_scalar=section.number("query_pre_attn_scalar", 256) if gemma2 else float(head_dim),
        rms_norm_eps=section.number("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(section),
        attn_logit_softcapping=section.softcap("attn_logit_softcapping", 50.0) if gemma2 else None,
        final_logit_softcapping=section.softcap("final_logit_softcapping", 30.0) if gemma2 else None,
        sliding_window=_sliding_window(section) if gemma2 else None,
        sliding_layers=_sliding_layers(section, layers) if gemma2 else (False,) * layers,
    )
    if config.num_attention_heads % config.num_key_value_heads:
        raise InputError(
            f"config.json: {config.num_attention_heads} attention heads cannot share "
            f"{config.num_key_value_heads} key/value heads"
        )
    return config


def _heads(section: _Section, key: str, width_key: str, head_dim: int, default: int) -> int:
    width = section.inferred.get(f"{section.name}.{width_key}")
    if width is None:
        return section.integer(key, default)
    heads = section.integer(key, max(1, width // head_dim))
    if heads * head_dim != width:
        raise InputError(
            f"config.json says {section.name}.{key} x head_dim is {heads} x {head_dim} = {heads * head_dim}, "
            f"but the tensors say {width}"
        )
    return heads


def _rope_theta(section: _Section) -> float:
    """`rope_theta`, or where transformers 5 keeps it: `rope_parameters.rope_theta`."""
    parameters = section.raw.get("rope_parameters") or section.raw.get("rope_scaling")
    if parameters is None:
        return section.number("rope_theta", 10000.0)
    if not isinstance(parameters, Mapping):
        raise InputError(f"config.json: {section.name}.rope_parameters is not a JSON object")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise InputError(f"config.json: rotary embeddings of type {kind!r} are not part of PaliGemma")
    theta = parameters.get("rope_theta", section.raw.get("rope_theta", 10000.0))
    return _positive(theta, f"{section.name}.rope_parameters.rope_theta")


def _sliding_window(section: _Section) -> int | None:
    explicitly_off = "sliding_window" in section.raw and section.raw["sliding_window"] is None
    return None if explicitly_off else section.integer("sliding_window", 4096)


def _sliding_layers(section: _Section, layers: int) -> tuple[bool, ...]:
    """Which layers slide: the even ones unless `layer_types` says otherwise."""
    types = section.raw.get("layer_types")
    if types is None:
        return tuple(index % 2 == 0 for index in range(layers))
    if not isinstance(types, list) or len(types) != layers:
        raise InputError(f"config.json: {section.name}.layer_types does not name a type for each of {layers} layers")
    unknown = [kind for kind in types if kind not in ("sliding_attention", "full_attention")]
    if unknown:
        raise InputError(f"config.json: {section.name}.layer_types has {unknown[0]!r}, which is not part of Gemma 2")
    return tuple(kind == "sliding_attention" for kind in types)


def _read_vision(section: _Section) -> VisionConfig:
    patch_size = section.integer("patch_size", 14)
    config = VisionConfig(
        hidden_size=section.integer("hidden_size", 1152),
        intermediate_size=section.integer("intermediate_size", 4304),
        num_hidden_layers=section.integer("num_hidden_layers", 27),
        num_attention_heads=section.integer("num_attention_heads", 16),
        image_size=section.integer("image_size", 224),
        patch_size=patch_size,
        layer_norm_eps=section.number("layer_norm_eps", 1e-6),
    )
    if config.image_size % patch_size:
        raise InputError(f"config.json: {config.image_size} pixels are not a multiple of patches of {patch_size}")
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"config.json: vision_config.hidden_size {config.hidden_size} cannot be cut into "
            f"{config.num_attention_heads} heads"
        )
    return config


def _image_token(raw: Mapping[str, Any]) -> int:
    """Under either of two names; a file that leaves it out means 257152, whatever transformers' class default is."""
    value = raw.get("image_token_index", raw.get("image_token_id"))
    return value if isinstance(value, int) and 0 <= value < 2**31 else 257152


def _read_quantization(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """MLX's entry, which mlx-lm and mlx-vlm write under either of two names."""
    entry = raw.get("quantization") or raw.get("quantization_config") or {}
    if not isinstance(entry, Mapping):
        raise InputError("config.json: quantization is not a JSON object")
    if "quant_method" in entry:
        raise InputError(
            f"config.json: the checkpoint is quantized by {entry['quant_method']!r}, which MLX cannot read; "
            "convert the original float checkpoint"
        )
    return entry
