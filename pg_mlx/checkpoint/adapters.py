"""Fine-tuned adapters, from PEFT or mlx-vlm, put onto a checkpoint as it is read.

LoRA (Hu et al. 2021, arXiv 2106.09685) adds a product of two thin matrices to a weight; rsLoRA (Kalajdzievski 2023,
arXiv 2312.03732) scales it by 1 / sqrt(rank) in place of 1 / rank; DoRA (Liu et al. 2024, arXiv 2402.09353) then gives
each row of the sum a length of its own. Whole tensors (PEFT's `modules_to_save`, trained biases) replace the stored.

Float weights are merged. Packed ones stay as they are, since packing them again would lose most of a small update:
`AdaptedSource.beside` gives what the layer adds to its output instead.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from ..config import PaliGemmaConfig
from ..errors import InputError
from ..quantization import padded_size
from .layouts import TEXT, VISION, canonical_name, has_channels_second, slots
from .safetensors import read_header, read_json

if TYPE_CHECKING:
    from .load import Source

AdapterPath = str | Path | Sequence[str | Path] | None

_HEAD, _EMBEDDING = "language_model.lm_head", f"{TEXT}.embed_tokens"

_LOW_RANK = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector|lora_[ab]|[ABm])"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?P<bias>\.bias)?(?:\.weight)?"  # an adapter's name, perhaps, then the tensor's
)
_PARTS = {  # up [rows, rank] or down [rank, columns], and whether it is stored the other way round
    "lora_A": ("down", False), "lora_B": ("up", False),
    "lora_embedding_A": ("up", True), "lora_embedding_B": ("down", True),
    "lora_a": ("down", True), "lora_b": ("up", True),  # mlx-lm and mlx-vlm
    "A": ("down", True), "B": ("up", True),  # mlx-vlm's older layer
    "lora_magnitude_vector": ("magnitude", False), "m": ("magnitude", False),
}  # fmt: skip
_WRAPPER = re.compile(
    r"\.modules_to_save(?:\.default|\.(?!linear\.)[^.]+(?=\.(?:weight|bias)$))?(?=\.)|\.base_layer(?=\.bias$)"
)
_FROZEN = re.compile(r"\.original_module\.|\.base_layer\.weight$")
_OTHER_METHODS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora",
)  # fmt: skip
_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


@dataclass(frozen=True)
class Change:
    """What an adapter does to one module: float32 arrays in the model's shapes, not yet evaluated.

    weight [rows, columns] and bias [rows] replace the stored ones. Then up [rows, rank] @ down [rank, columns] is
    added to the weight and extra_bias [rows] to the bias, and magnitude [rows] is how long the weight's rows become.
    """

    weight: mx.array | None = None
    bias: mx.array | None = None
    up: mx.array | None = None
    down: mx.array | None = None
    extra_bias: mx.array | None = None
    magnitude: mx.array | None = None

    def merge(self, weight: mx.array) -> mx.array:
        """weight [rows, columns] -> the same with the low-rank update, of the new lengths."""
        if self.up is not None:
            weight = mx.addmm(weight, self.up, self.down)
        return weight if self.magnitude is None else weight * self.stretch(weight)[:, None]

    def stretch(self, weight: mx.array) -> mx.array:
        """What makes the rows of weight [rows, columns] as long as they should be: [rows]. Zeros stay zeros."""
        length = mx.sqrt(mx.square(weight).sum(axis=1))
        return mx.where(length > 0, self.magnitude / length, 0)


class Adapter:
    """A folder with adapter_config.json and the tensors it describes. Raises InputError for what is not LoRA's kind.

    `modules` are the canonical names of the modules that it changes.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise InputError(f"no such adapter folder: {folder}")
        self.config = _read_config(self.folder / "adapter_config.json")
        self._file = _weight_file(self.folder)
        self._opened: dict[str, mx.array] = {}
        self._keys: dict[str, dict[str, tuple[str, bool]]] = {}  # by module and field: key, and if it is transposed
        self._trained_as: dict[str, str] = {}  # what a module was called where the adapter was trained
        for key, (dtype, _) in read_header(self._file).items():
            if dtype not in ("F32", "F16", "BF16"):
                raise InputError(f"{self._file}: {key} holds {dtype}, not floating-point numbers")
            self._note(key)
        self._drop_head()
        self.modules = self._keys.keys()
        if not self.modules:
            raise InputError(f"{self._file} adapts nothing: it holds no tensors")

    def change(self, module: str, shapes: Mapping[str, tuple[int, ...]]) -> Change:
        """What it does to one of its modules. shapes: the model's float tensors, which it is checked against."""
        wanted = shapes.get(f"{module}.weight")
        if wanted is None:
            raise InputError(f"{self.folder} adapts {module}, which this model does not have")
        rows, columns = wanted[0], math.prod(wanted[1:])
        arrays = {field: self._read(*place) for field, place in self._keys[module].items()}
        up, down = arrays.get("up"), arrays.get("down")
        if (up is None) != (down is None) or ("magnitude" in arrays and up is None):
            raise InputError(f"{self._file} holds only {', '.join(arrays)} of {module}")
        if self.config.get("use_dora") and up is not None and "magnitude" not in arrays:
            raise InputError(f"{self._file} is DoRA, but has no lora_magnitude_vector of {module}")
        if up is not None and down is not None:
            up, down = _as_matrix(up), _as_matrix(down)
            if up.shape[1] != down.shape[0]:
                raise InputError(f"{self._file}: the ranks of {module} differ: {up.shape[1]} and {down.shape[0]}")
            self._check(f"{module}.weight", (up.shape[0], down.shape[1]), (rows, columns))
            scale = self._scale(module, max(1, up.shape[1]))
            arrays |= {"up": _pad(up, (rows, up.shape[1])) * scale, "down": _pad(down, (down.shape[0], columns))}
            if "extra_bias" in arrays:
                arrays["extra_bias"] *= scale
        if "weight" in arrays:
            weight = arrays["weight"]
            if has_channels_second(f"{module}.weight", weight.shape):
                weight = weight.transpose(0, 2, 3, 1)
            self._check(f"{module}.weight", weight.shape, wanted)
            arrays["weight"] = _pad(weight, wanted).reshape(rows, columns)
        for field in ("bias", "extra_bias", "magnitude"):
            if field in arrays:
                if "bias" in field and f"{module}.bias" not in shapes:
                    raise InputError(f"{self.folder} has a bias for {module}, which has none in this model")
                vector = arrays[field].reshape(-1)
                self._check(f"{module}.bias", vector.shape, (rows,))
                arrays[field] = _pad(vector, (rows,))
        return Change(**arrays)

    def _note(self, key: str) -> None:
        """Remember where in the file a field of a module is."""
        name = key.removeprefix("base_model.model.")
        if _FROZEN.search(name):
            return
        if low_rank := _LOW_RANK.fullmatch(name):
            trained_as, part = low_rank["module"], low_rank["part"]
            canonical = canonical_name(f"{trained_as}.weight")
            if self.config.get("fan_in_fan_out") and part in ("lora_A", "lora_B"):
                part = part.replace("lora_", "lora_embedding_")  # these are what a transposed update looks like
            place = ("extra_bias", False) if low_rank["bias"] else _PARTS[part]
        else:
            trained_as = ""
            canonical = canonical_name(_WRAPPER.sub("", name))
            field = name.rpartition(".")[2]
            if field not in ("weight", "bias"):
                raise InputError(f"{self._file} holds {key!r}, which is no part of a LoRA adapter")
            place = (field, False)
        if canonical is None:
            return
        module = canonical.rpartition(".")[0]
        fields = self._keys.setdefault(module, {})
        if place[0] in fields:
            raise InputError(f"{self._file} holds {module} twice: {fields[place[0]][0]} and {key}")
        fields[place[0]] = key, place[1]
        if trained_as:
            self._trained_as[module] = trained_as

    def _drop_head(self) -> None:
        """PaliGemma's head is its embedding, so what was trained for a head apart has no place."""
        head = self._keys.pop(_HEAD, None)
        if head is None or (self.config.get("ensure_weight_tying") and _EMBEDDING in self._keys):
            return
        if "weight" not in head or "weight" not in self._keys.get(_EMBEDDING, {}):
            raise InputError(
                f"{self.folder} adapts lm_head alone, but PaliGemma's head is its embedding: "
                "a checkpoint with tied weights cannot hold the one without the other"
            )
        _say_once(f"{self.folder} holds lm_head beside embed_tokens; PaliGemma ties the two, so embed_tokens is used")

    def _read(self, key: str, transposed: bool) -> mx.array:
        """A tensor in float32. Nothing of it is kept here, so that a large one takes memory only while it is used."""
        if key not in self._opened:
            try:
                self._opened = cast(dict[str, mx.array], mx.load(str(self._file), format="safetensors"))
            except RuntimeError as error:
                raise InputError(f"{self._file} cannot be read: {error}") from None
        tensor = self._opened.pop(key).astype(mx.float32)
        return tensor.T if transposed else tensor

    def _scale(self, module: str, rank: int) -> float:
        """alpha / rank (rsLoRA: / sqrt(rank)), or what mlx-lm and mlx-vlm call scale."""
        scale = self.config.get("lora_parameters", self.config).get("scale")
        if scale is not None:
            return _number(scale, "scale", self.folder)
        alpha = self.config.get("lora_alpha", self.config.get("alpha"))
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", self._trained_as[module]):  # as PEFT does
                    alpha = value
                    break
            except re.error as error:
                raise InputError(f"{self.folder}: alpha_pattern {pattern!r} is no pattern: {error}") from None
        return _number(alpha, "lora_alpha", self.folder) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _check(self, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        """Equal shapes, but that a model may have padded its vision MLP with zeros (4304 -> 4352)."""
        layer, _, part = name.rpartition(".")
        axis = {"fc1": 0, "fc2": 1}.get(layer.rpartition(".")[2]) if layer.startswith(VISION) else None
        if axis is not None and axis < len(found) == len(wanted) and found[axis] < wanted[axis]:
            if wanted[axis] <= padded_size(found[axis]):
                found = (*found[:axis], wanted[axis], *found[axis + 1 :])
        if found != wanted:
            raise InputError(
                f"{self.folder} is an adapter for another size: its update of {name} is {list(found)}, "
                f"the model's {part} is {list(wanted)}"
            )


class AdaptedSource:
    """A checkpoint with adapters put onto it, one after the other. A Source itself; shapes are the checkpoint's.

    config: needed where modules that the adapters change are quantized. Their packed tensors are read unchanged, and
    `beside` has the rest; but one whose weight is replaced as a whole becomes a float module. Raises InputError for an
    adapter that does not fit the model.
    """

    def __init__(self, source: Source, adapters: Sequence[Adapter], config: PaliGemmaConfig | None = None):
        self._source, self._adapters = source, adapters
        self.shapes = dict(source.shapes)
        self._floats = source.shapes
        if config is not None:
            self._floats = {name: shape for slot in slots(config) for name, shape in slot.expected()}
        for adapter in adapters:
            for module in adapter.modules:
                if config is None and self._is_packed(module):
                    raise InputError(
                        f"{adapter.folder} cannot be merged into {module}, which is quantized; "
                        "merge it into the float checkpoint, then quantize"
                    )
                change = adapter.change(module, self._floats)
                if change.weight is not None and self._is_packed(module):
                    self.shapes[f"{module}.weight"] = self._floats[f"{module}.weight"]
                    for part in ("scales", "biases"):
                        self.shapes.pop(f"{module}.{part}", None)

    def read(self, name: str) -> mx.array:
        """The tensor, merged in float32 and rounded once to the stored dtype, not yet evaluated."""
        stored = self._source.read(name)
        module, _, part = name.rpartition(".")
        changes = self._changes(module)
        if not changes or part not in ("weight", "bias") or (part == "weight" and self._is_packed(module)):
            return stored
        if part == "bias":
            value: mx.array | None = stored.astype(mx.float32)
            for change in changes:
                value = value if change.bias is None else change.bias
                value = value if change.extra_bias is None else value + change.extra_bias
        else:
            is_float = mx.issubdtype(stored.dtype, mx.floating)  # else packed, and one of the changes replaces it
            value = stored.astype(mx.float32).reshape(stored.shape[0], -1) if is_float else None
            for change in changes:
                value = value if change.weight is None else change.weight
                value = value if value is None else change.merge(value)
        if value is None:
            return stored
        value = value.reshape(self.shapes[name])
        return value.astype(stored.dtype) if mx.issubdtype(stored.dtype, mx.floating) else value

    def beside(self, module: str, weight: mx.array) -> dict[str, mx.array]:
        """What a packed module, of which weight [rows, columns] are the floats, needs to be as if merged: nothing, or
        up [rows, rank], down [rank, columns] and perhaps row_scale [rows], see linear.Linear. float32, lazy."""
        changes = [change for change in self._changes(module) if change.up is not None]
        if not changes:
            return {}
        ups: list[mx.array] = []
        downs: list[mx.array] = []
        row_scale = None
        for change in changes:
            ups.append(cast(mx.array, change.up))
            downs.append(cast(mx.array, change.down))
            if change.magnitude is not None:
                up, down = mx.concatenate(ups, axis=1), mx.concatenate(downs, axis=0)
                so_far = weight if row_scale is None else weight * row_scale[:, None]
                stretch = change.stretch(mx.addmm(so_far, up, down))
                row_scale = stretch if row_scale is None else row_scale * stretch
                ups = [up * stretch[:, None] for up in ups]
        arrays = {"up": mx.concatenate(ups, axis=1), "down": mx.concatenate(downs, axis=0)}
        return arrays if row_scale is None else {**arrays, "row_scale": row_scale}

    def _changes(self, module: str) -> list[Change]:
        return [adapter.change(module, self._floats) for adapter in self._adapters if module in adapter.modules]

    def _is_packed(self, module: str) -> bool:
        return f"{module}.scales" in self.shapes


def open_adapters(adapter_path: AdapterPath) -> list[Adapter]:
    """The adapters of one folder or several, in order."""
    if adapter_path is None:
        return []
    return [Adapter(path) for path in ([adapter_path] if isinstance(adapter_path, (str, Path)) else adapter_path)]


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent} has no adapter_config.json, so it is not an adapter folder")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} does not hold a JSON object")
    method = config.get("peft_type", "LORA")
    if method != "LORA":
        raise InputError(f"{path}: adapters of type {method!r} cannot be applied, only LORA with its variants")
    for name in _OTHER_METHODS:
        if config.get(name):
            raise InputError(f"{path}: {name} is set, a variant of LoRA that cannot be applied")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise InputError(
            f"{path}: init_lora_weights is {start!r}, which changes the base weights too; save the adapter "
            "with PEFT's path_initial_model_for_weight_conversion, which makes it plain LoRA"
        )
    for name in ("alpha_pattern", "lora_parameters"):
        if not isinstance(config.get(name) or {}, dict):
            raise InputError(f"{path}: {name} is not a JSON object")
    return config


def _weight_file(folder: Path) -> Path:
    for name in ("adapter_model.safetensors", "adapters.safetensors"):
        if (folder / name).is_file():
            return folder / name
    if (folder / "adapter_model.bin").is_file():
        raise InputError(
            f"{folder} has only adapter_model.bin, a pickle, and unpickling can run code hidden in it; re-save it "
            'where torch is installed: python -c "import torch, safetensors.torch as s; s.save_file(torch.load('
            "'adapter_model.bin', weights_only=True), 'adapter_model.safetensors')\""
        )
    raise InputError(f"{folder} has no weights: neither adapter_model.safetensors nor adapters.safetensors")


def _number(value: Any, name: str, folder: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{folder / 'adapter_config.json'}: {name} is {value!r}, not a number")
    return float(value)


def _as_matrix(factor: mx.array) -> mx.array:
    """A factor [m, n] as it is; one of the patch convolution, [m, n, height, width], with n last and flattened."""
    return factor.transpose(0, 2, 3, 1).reshape(factor.shape[0], -1) if factor.ndim == 4 else factor


def _pad(array: mx.array, shape: tuple[int, ...]) -> mx.array:
    """Zeros appended along each axis up to a shape."""
    if array.shape == shape:
        return array
    return mx.pad(array, [(0, wanted - found) for found, wanted in zip(array.shape, shape, strict=True)])


@functools.cache
def _say_once(message: str) -> None:
    print(f"pg_mlx: {message}", file=sys.stderr)
