"""Adapter folders as PEFT, mlx-lm and mlx-vlm write them: what fine-tuning changed, module by module.

LoRA (Hu et al. 2021, arXiv 2106.09685) adds a product of two thin matrices to a weight; rsLoRA (Kalajdzievski 2023,
arXiv 2312.03732) scales it by 1 / sqrt(rank) in place of 1 / rank; DoRA (Liu et al. 2024, arXiv 2402.09353) then gives
each row of the sum a length of its own. Whole tensors (`modules_to_save`, trained biases) replace the stored ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from ...errors import InputError
from ...files.safetensors import read_header
from ...quantization import padded_size
from ..layouts import EMBEDDING, HEAD, canonical_name, has_channels_second, vision_mlp_axis
from ..weight_files import ADAPTER_CONFIG
from .folder import find_folder, read_config, token_indices, weight_file
from .patterns import matches

_LOW_RANK = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector|lora_[ab]|[ABm]|trainable_tokens_delta)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?P<bias>\.bias)?(?:\.weight)?"  # the adapter's name, perhaps, then the tensor's
)
_PARTS = {  # up [rows, rank] or down [rank, columns], and whether it is stored the other way round
    "lora_A": ("down", False), "lora_B": ("up", False),
    "lora_embedding_A": ("up", True), "lora_embedding_B": ("down", True),
    "lora_a": ("down", True), "lora_b": ("up", True),  # mlx-lm and mlx-vlm
    "A": ("down", True), "B": ("up", True),  # mlx-vlm's older layer
    "lora_magnitude_vector": ("magnitude", False), "m": ("magnitude", False),
    "trainable_tokens_delta": ("tokens", False),  # rows of a table, whole in spite of the name
}  # fmt: skip
_WRAPPERS = re.compile(
    r"\.modules_to_save(?:\.default|\.(?!linear\.)[^.]+(?=\.(?:weight|bias)$))?(?=\.)|\.base_layer(?=\.bias$)"
)
_FROZEN = re.compile(r"\.original_module\.|\.base_layer\.weight$|\.trainable_tokens_original")
_TABLES = (EMBEDDING, HEAD)


@dataclass(frozen=True)
class Change:
    """What an adapter does to one module: float32 arrays in the model's shapes, not yet evaluated.

    weight [rows, columns] and bias [rows] replace the stored ones. Then the product of the two factors, [rows, rank]
    and [rank, columns], is added to the weight and extra_bias [rows] to the bias, and magnitude is how long the
    weight's rows become, [rows, 1], or (PEFT's DoRA of an embedding) its columns, [1, columns]. tokens are some of the
    weight's rows, by index, and what replaces them, [len(index), columns]; a table grows by them where it ends before.
    scale is what the first factor and the extra bias have been multiplied by.
    """

    weight: mx.array | None = None
    bias: mx.array | None = None
    factors: tuple[mx.array, mx.array] | None = None
    extra_bias: mx.array | None = None
    magnitude: mx.array | None = None
    tokens: tuple[list[int], mx.array] | None = None
    scale: float = 1.0

    @property
    def of_columns(self) -> bool:
        """Whether it changes the lengths of columns."""
        return self.magnitude is not None and self.magnitude.shape[1] > 1


class Adapter:
    """A folder or hub repository with adapter_config.json and one file of tensors.

    Raises InputError for what is not of LoRA's kind, and PgMlxError if the hub cannot be reached.

    `modules` are the canonical names of the modules that it changes. `apart`: whether it was trained with embedding
    and head as two tables, so that they differ after it even if they are one in its base. `borrowed`: the one of the
    two that was not trained and is read from the other's stored base, which is right for a tied base only.
    """

    def __init__(self, folder: str | Path):
        self.folder = find_folder(folder)
        self.config = read_config(self.folder / ADAPTER_CONFIG)
        self._file = weight_file(self.folder)
        self._opened: dict[str, mx.array] = {}
        self._places: dict[str, dict[str, tuple[str, bool]]] = {}  # by module and field: key, and if it is transposed
        self._trained_as: dict[str, str] = {}  # the name of a module where the adapter was trained
        self._frozen: dict[str, str] = {}  # keys of tables that PEFT saved beside what it trained
        self._header = read_header(self._file)
        for key, (dtype, _) in self._header.items():
            if dtype not in ("F32", "F16", "BF16"):
                raise InputError(f"{self._file}: {key} holds {dtype}, but adapters are F32, F16 or BF16")
            self._place(key)
        self.modules = self._places.keys()
        self.apart = self._trains_apart()
        self.borrowed: str | None = None
        if self.apart:
            for table, other in ((HEAD, EMBEDDING), (EMBEDDING, HEAD)):
                if other in self._frozen and table not in self._places:
                    # The two were one before training, which may have had other rows than the base.
                    self._places[table], self._frozen[table] = {}, self._frozen[other]
                    self.borrowed = table
                    break
        if not self.modules:
            raise InputError(f"{self._file} adapts nothing: it holds no tensors")

    def change(self, module: str, shapes: Mapping[str, tuple[int, ...]]) -> Change:
        """What it does to one of its modules. shapes: of the model's float tensors before it. Raises InputError where
        it does not fit them."""
        shape = shapes.get(f"{module}.weight")
        if shape is None:
            raise InputError(f"{self.folder} adapts {module}, which this model does not have")
        rows, columns = self.rows(module, shape[0]), math.prod(shape[1:])
        places = dict(self._places[module])
        if rows != shape[0] and module in self._frozen:
            places.setdefault("weight", (self._frozen[module], False))
        fields: dict[str, Any] = {field: self._read(*place) for field, place in places.items()}
        if "tokens" in fields:
            fields["tokens"] = self._tokens(module, fields["tokens"], shape)
        if "weight" in fields:
            weight = fields["weight"]
            if has_channels_second(f"{module}.weight", weight.shape):
                weight = weight.transpose(0, 2, 3, 1)
            wanted = (rows, *shape[1:])
            self._check(module, "weight", weight.shape, wanted)
            fields["weight"] = _pad(weight, wanted).reshape(rows, columns)
        for name in fields.keys() & {"bias", "extra_bias"}:
            if f"{module}.bias" not in shapes:
                raise InputError(f"{self.folder} has a bias for {module}, which has none in this model")
            self._check(module, "bias", fields[name].shape, (rows,))
            fields[name] = _pad(fields[name], (rows,))
        factors, scale = None, 1.0
        if fields.keys() & {"up", "down", "magnitude", "extra_bias"}:
            self._require_whole(module, fields)
            up, down = _as_matrix(fields.pop("up")), _as_matrix(fields.pop("down"))
            if not (up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0] > 0):
                raise InputError(
                    f"{self._file}: the factors of {module} are {list(up.shape)} and {list(down.shape)}, "
                    "which is not a low-rank product"
                )
            rank = up.shape[1]
            self._check(module, "weight", (up.shape[0], down.shape[1]), (rows, columns))
            scale = self._scale(module, rank)
            factors = _pad(up, (rows, rank)) * scale, _pad(down, (rank, columns))
            if "extra_bias" in fields:
                fields["extra_bias"] *= scale
        if "magnitude" in fields:
            of_columns = "lora_embedding" in self._places[module]["up"][0] or self.config.get("fan_in_fan_out")
            lengths = fields["magnitude"].reshape(1, -1) if of_columns else fields["magnitude"].reshape(-1, 1)
            wanted = (1, columns) if of_columns else (rows, 1)
            self._check(module, "magnitude", lengths.shape, wanted)
            fields["magnitude"] = _pad(lengths, wanted)
        return Change(factors=factors, scale=scale, **fields)

    def rows(self, module: str, before: int) -> int:
        """How many rows a module's weight has after the adapter; other than `before` only where it has resized a
        table."""
        fields = self._places.get(module, {})
        if module not in _TABLES:
            return before
        stored = fields["weight"][0] if "weight" in fields else self._frozen.get(module)
        if stored is not None:
            shape = self._header[stored][1]
            return shape[0] if len(shape) == 2 else before
        return max(before, 1 + max(self._indices(module))) if "tokens" in fields else before

    def _indices(self, module: str) -> list[int]:
        trained_as = self._trained_as[module].removesuffix(".token_adapter")
        return token_indices(self.folder / ADAPTER_CONFIG, self.config, module, trained_as)

    def _tokens(self, module: str, rows: mx.array, shape: tuple[int, ...]) -> tuple[list[int], mx.array]:
        """Change.tokens. shape: of the table before it."""
        ids = self._indices(module)
        self._check(module, "trained rows", rows.shape, (len(ids), shape[1]))
        if missing := set(range(shape[0], max(ids))) - {*ids}:
            raise InputError(
                f"{self.folder} trains token {max(ids)} of {module}, which has {shape[0]} rows, but not token "
                f"{min(missing)}; save it with PEFT's save_embedding_layers=True"
            )
        return ids, rows

    def _require_whole(self, module: str, fields: Mapping[str, mx.array]) -> None:
        """Raises InputError if a factor of the low-rank update is missing."""
        needed = {"up", "down", "magnitude"} if self.config.get("use_dora") else {"up", "down"}
        if missing := needed - fields.keys():
            stored = {field: part for part, (field, _) in reversed(_PARTS.items())}
            raise InputError(f"{self._file} has no {' and no '.join(stored[f] for f in sorted(missing))} for {module}")

    def _scale(self, module: str, rank: int) -> float:
        """alpha / rank (rsLoRA: / sqrt(rank)), or what mlx-lm and mlx-vlm call scale."""
        scale = (self.config.get("lora_parameters") or self.config).get("scale")
        if scale is not None:
            return self._number(scale, "scale")
        alpha = self.config.get("lora_alpha", self.config.get("alpha"))
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            try:
                if matches(pattern, self._trained_as[module]):  # the first one counts
                    alpha = value
                    break
            except ValueError as error:
                raise InputError(f"{self.folder}: alpha_pattern {pattern[:100]!r} is not a pattern: {error}") from None
        return self._number(alpha, "lora_alpha") / (rank**0.5 if self.config.get("use_rslora") else rank)

    def _number(self, value: Any, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
            raise InputError(f"{self.folder / 'adapter_config.json'}: {name} is {value!r}, not a sensible number")
        return float(value)

    def _check(self, module: str, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        """Equal shapes, but for a vision MLP that the model has padded with zeros (4304 -> 4352)."""
        axis = vision_mlp_axis(module)
        padded = found
        if axis is not None and axis < len(found) == len(wanted) and found[axis] < wanted[axis]:
            width = min(wanted[axis], padded_size(found[axis]))
            padded = (*found[:axis], width, *found[axis + 1 :])
        if padded != wanted:
            raise InputError(
                f"{self.folder} is an adapter for another size: its {name} of {module} is {list(found)}, "
                f"the model's {list(wanted)}"
            )

    def _place(self, key: str) -> None:
        """Remember which field of which module a tensor is."""
        name = key.removeprefix("base_model.model.")
        if _FROZEN.search(name):
            self._note_frozen(key, name)
            return
        low_rank = _LOW_RANK.fullmatch(name)
        if low_rank:
            part = low_rank["part"]
            if self.config.get("fan_in_fan_out") and part in ("lora_A", "lora_B"):
                part = part.replace("lora_", "lora_embedding_")  # which are the factors of a transposed product
            field, transposed = ("extra_bias", False) if low_rank["bias"] else _PARTS[part]
            canonical = canonical_name(f"{low_rank['module'].removesuffix('.token_adapter')}.weight")
        else:
            field, transposed = name.rpartition(".")[2], False
            canonical = canonical_name(_WRAPPERS.sub("", name))
            if field not in ("weight", "bias"):
                raise InputError(f"{self._file} holds {key}, which is not part of a LoRA adapter")
        if canonical is None:
            return
        module = canonical.rpartition(".")[0]
        fields = self._places.setdefault(module, {})
        if field in fields:
            raise InputError(f"{self._file} holds {module} twice: {fields[field][0]} and {key}")
        fields[field] = key, transposed
        if low_rank:
            self._trained_as[module] = low_rank["module"]

    def _note_frozen(self, key: str, name: str) -> None:
        """Remember a table that was not trained: it counts where it has other rows than the base's."""
        module = (canonical_name(name.replace(".base_layer.", ".")) or "").removesuffix(".weight")
        if module in _TABLES:
            self._frozen[module] = key

    def _trains_apart(self) -> bool:
        """PEFT turns a tied head and embedding into two tables when it trains one of them, unless asked not to; other
        programs, and PEFT where it trains single tokens, keep them one."""
        head, embedding = self._places.get(HEAD, {}), self._places.get(EMBEDDING, {})
        if not (head or embedding) or self.config.get("ensure_weight_tying"):
            return False
        if not head:
            trained = "weight" not in embedding or any(
                str(name).endswith("embed_tokens") for name in self.config.get("modules_to_save") or []
            )
            return "peft_type" in self.config and "tokens" not in embedding and trained
        return head.keys() != embedding.keys() or not all(
            mx.array_equal(self._read(*head[field]), self._read(*embedding[field])).item() for field in head
        )

    def _read(self, key: str, transposed: bool) -> mx.array:
        """A tensor in float32. Nothing of it is kept here, so that a large one takes memory only while it is used."""
        if key not in self._opened:
            try:
                self._opened = cast(dict[str, mx.array], mx.load(str(self._file), format="safetensors"))
            except RuntimeError as error:
                raise InputError(f"{self._file} cannot be read: {error}") from None
        tensor = self._opened.pop(key).astype(mx.float32)
        return tensor.T if transposed else tensor


def _as_matrix(factor: mx.array) -> mx.array:
    """A factor [m, n] as it is; one of the patch convolution, [m, n, height, width], with n last and flattened."""
    return factor.transpose(0, 2, 3, 1).reshape(factor.shape[0], -1) if factor.ndim == 4 else factor


def _pad(array: mx.array, shape: tuple[int, ...]) -> mx.array:
    """Zeros appended along each axis up to a shape."""
    if array.shape == shape:
        return array
    return mx.pad(array, [(0, wanted - found) for found, wanted in zip(array.shape, shape, strict=True)])
