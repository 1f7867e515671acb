"""What a conversion will write, decided from shapes alone: nothing of the weights is read for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ..checkpoint.check import packing
from ..checkpoint.layouts import EMBEDDING, HEAD, TEXT, VISION, WeightSpec, vision_mlp_axis
from ..checkpoint.open import Checkpoint
from ..config import PaliGemmaConfig
from ..errors import InputError
from ..quantization import Quantization, Recipe, padded_size

COMPONENTS = {
    "SigLIP": VISION,
    "projector": "multi_modal_projector",
    "embedding/head": EMBEDDING,
    "head of its own": HEAD,
    "decoder": TEXT,
}


@dataclass(frozen=True)
class Module:
    """One canonical module: its stored form and the one it will have.

    rows and columns are the stored sizes, `padded` the sizes to write (larger only in SigLIP's MLP).
    """

    name: str
    kind: str
    rows: int
    columns: int
    bias: bool
    stored: Quantization | None
    target: Quantization | None
    padded: tuple[int, int]

    @property
    def component(self) -> str:
        """Which of COMPONENTS it belongs to."""
        return next(component for component, prefix in COMPONENTS.items() if self.name.startswith(prefix))

    @property
    def parameters(self) -> int:
        """Number of its parameters as published, without padding."""
        return self.rows * max(self.columns, 1) + self.rows * self.bias

    def bytes_of(self, quantization: Quantization | None, item_bytes: int, rows: int, columns: int) -> int:
        """Size of its tensors in a file. item_bytes: of a float and of an affine scale."""
        bias = rows * item_bytes * self.bias
        if quantization is None:
            return rows * max(columns, 1) * item_bytes + bias
        scale_bytes = 2 * item_bytes if quantization.mode == "affine" else 1
        return rows * columns * quantization.bits // 8 + rows * columns // quantization.group_size * scale_bytes + bias

    def bytes_after(self, item_bytes: int) -> int:
        """Size of its tensors in the file that will be written."""
        return self.bytes_of(self.target, item_bytes, *self.padded)

    def bytes_before(self, item_bytes: int) -> int:
        """Size of its tensors in the source."""
        return self.bytes_of(self.stored, item_bytes, self.rows, self.columns)


@dataclass(frozen=True)
class Plan:
    """What a conversion will write."""

    modules: list[Module]
    """Every module, in the order in which they are written."""
    config: PaliGemmaConfig
    """The config of the checkpoint that will be written."""
    left_float: list[str]
    """Modules that were to be packed but cannot be: no whole groups."""


def make_plan(checkpoint: Checkpoint, recipe: Recipe | None, dequantize: bool = False) -> Plan:
    """Decide the form of every module. recipe None: keep what is packed packed and what is float float, unless
    `dequantize`.

    Raises InputError if nothing can be packed although a recipe asks for it.
    """
    config = checkpoint.config
    modules = [module for spec in checkpoint.specs for module in _modules(spec, checkpoint)]
    left_float: list[str] = []
    width = config.vision.intermediate_size
    if recipe is None:
        modules = [replace(module, target=None if dequantize else module.stored) for module in modules]
    else:
        _require_matches(recipe, modules)
        width = _vision_mlp_width(modules, recipe, width)
        modules = [_padded(module, width) for module in modules]
        modules = [_packed(module, recipe, left_float) for module in modules]
        if not any(module.target for module in modules):
            raise InputError(f"{recipe.name} quantizes nothing: no module's columns divide into whole groups")
    rows = _vocabulary_rows(config)
    modules = [replace(m, padded=(rows, m.columns)) if m.kind == "embedding" else m for m in modules]
    written = replace(
        config,
        text=replace(config.text, vocab_size=rows),
        vision=replace(config.vision, intermediate_size=width),
        quantization=_entry(modules),
    )
    return Plan(modules, written, left_float)


def _require_matches(recipe: Recipe, modules: list[Module]) -> None:
    """A pattern that names nothing is a typing mistake, and would silently leave the module as it was. The head is
    known to recipes even where it is the embedding."""
    example = next(module.name for module in reversed(modules) if _packable(module))
    names = [*(module.name for module in modules), HEAD]
    for rule in recipe.rules:
        if not any(fnmatchcase(name, rule.pattern) for name in names):
            if recipe.complete:
                raise InputError(f"{recipe.name} is for another shape: no module here is called {rule.pattern!r}")
            raise InputError(f"no module is called {rule.pattern!r}; names look like {example}")
    for module in modules if recipe.complete else ():
        if _packable(module) and not any(rule.matches(module.name, module.columns) for rule in recipe.rules):
            raise InputError(f"{recipe.name} is for another shape: it has no bits for {module.name}")


def _vocabulary_rows(config: PaliGemmaConfig) -> int:
    """The original tables end at 257152 rows, where <image> begins. Programs that look <image> up before they replace
    it would read beyond the table, so it gets 64 more rows of zeros, for 257216 as in Hugging Face's files."""
    rows = config.text.vocab_size
    return rows + 64 if rows == config.image_token_index else rows


def _modules(spec: WeightSpec, checkpoint: Checkpoint) -> Iterator[Module]:
    shapes = checkpoint.source.shapes
    for name, rows in zip(spec.sources, spec.rows, strict=True):
        packed = f"{name}.scales" in shapes
        stored = packing(shapes, name, spec.columns, checkpoint.config) if packed else None
        yield Module(name, spec.kind, rows, spec.columns, spec.bias, stored, None, (rows, spec.columns))


def _packable(module: Module) -> bool:
    return module.kind in ("linear", "embedding")


def _vision_mlp_width(modules: list[Module], recipe: Recipe, width: int) -> int:
    """SigLIP's MLP width, padded (4304 -> 4352) if some fc2 is to be packed in groups that do not divide it."""
    for module in modules:
        if vision_mlp_axis(module.name) == 1:
            wanted = recipe.choose(module.name, module.columns)
            if wanted and not wanted.fits(width):
                return padded_size(width)
    return width


def _padded(module: Module, vision_mlp_width: int) -> Module:
    """A module with SigLIP's MLP width as it will be written."""
    axis = vision_mlp_axis(module.name)
    if axis is None:
        return module
    rows, columns = module.padded
    return replace(module, padded=(vision_mlp_width, columns) if axis == 0 else (rows, vision_mlp_width))


def _packed(module: Module, recipe: Recipe, left_float: list[str]) -> Module:
    wanted = recipe.choose(module.name, module.padded[1]) if _packable(module) else None
    if wanted and not wanted.fits(module.padded[1]):
        left_float.append(module.name)
        wanted = None
    return replace(module, target=wanted)


def _entry(modules: list[Module]) -> dict[str, object]:
    """MLX's `quantization` entry: the commonest packing at the top, every other module by name."""
    packed = [module.target for module in modules if module.target]
    if not packed:
        return {}
    common = max(set(packed), key=lambda quantization: (packed.count(quantization), quantization.bits))
    entry: dict[str, object] = _fields(common)
    for module in modules:
        if module.target == common or not (module.target or _packable(module)):
            continue
        entry[module.name] = _fields(module.target) if module.target else False
    return entry


def _fields(quantization: Quantization) -> dict[str, object]:
    fields: dict[str, object] = {"group_size": quantization.group_size, "bits": quantization.bits}
    return fields if quantization.mode == "affine" else {**fields, "mode": quantization.mode}
