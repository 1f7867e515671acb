"""The bits of every matrix as a short table: a line for each kind of matrix, a digit for each layer.

Query, key and value are one kind, and so are gate and up: each of them is computed as one product, which different
bits would split. As JSON the table is a recipe that can be given again (--q-recipe FILE). Recipes for the published
shapes are files like that, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..checkpoint.layouts import EMBEDDING, HEAD, TEXT, VISION
from ..errors import InputError
from ..files.json import read_json
from ..quantization import RECIPES, Quantization, Recipe
from ..quantization.modes import AFFINE_BITS, AFFINE_GROUPS
from ..quantization.recipes import Rule
from .plan import Module

GROUP_SIZE = 64
PUBLISHED = Path(__file__).parent / "recipes"
FLOAT = "-"
"""In the place of a digit: this one stays float."""

KINDS = {
    "SigLIP q/k/v": f"{VISION}.encoder.layers.*.self_attn.[qkv]_proj",
    "SigLIP out": f"{VISION}.encoder.layers.*.self_attn.out_proj",
    "SigLIP fc1": f"{VISION}.encoder.layers.*.mlp.fc1",
    "SigLIP fc2": f"{VISION}.encoder.layers.*.mlp.fc2",
    "projector": "multi_modal_projector.*",
    "embedding/head": EMBEDDING,
    "decoder q/k/v": f"{TEXT}.layers.*.self_attn.[qkv]_proj",
    "decoder o": f"{TEXT}.layers.*.self_attn.o_proj",
    "decoder gate/up": f"{TEXT}.layers.*.mlp.[gu]*_proj",
    "decoder down": f"{TEXT}.layers.*.mlp.down_proj",
    "head of its own": HEAD,
}
"""The canonical names of each kind; where there are layers, the first star is the layer's number."""


@dataclass(frozen=True)
class BitTable:
    """The bits of each kind of matrix, layer by layer; one entry where there are no layers. None: float."""

    name: str
    about: str
    bits: Mapping[str, Sequence[int | None]]
    group_size: int = GROUP_SIZE

    def recipe(self) -> Recipe:
        """The same as rules."""
        rules = []
        for kind, widths in self.bits.items():
            for layer, bits in enumerate(widths):
                pattern = KINDS[kind].replace("layers.*", f"layers.{layer}")
                rules.append(Rule(pattern, Quantization(bits, self.group_size) if bits else None))
        return Recipe(self.name, self.about, tuple(rules), complete=True)

    def text(self) -> str:
        """The table for people: layers from left to right."""
        width = max(len(kind) for kind in self.bits)
        return "\n".join(f"{kind:<{width}}  {_digits(bits)}" for kind, bits in self.bits.items())

    def to_json(self) -> dict[str, Any]:
        """As `BitTable.from_json` takes it."""
        bits = {kind: _digits(widths) for kind, widths in self.bits.items()}
        return {"name": self.name, "about": self.about, "group_size": self.group_size, "bits": bits}

    @classmethod
    def from_json(cls, content: Any, place: str) -> BitTable:
        """place: what messages call it. Raises InputError for anything that is not such a table."""
        bits = content.get("bits") if isinstance(content, dict) else None
        if not isinstance(bits, dict) or not bits:
            raise InputError(f'{place} is not a table of bits: it has no "bits" for each kind of matrix')
        known = {FLOAT: None, **{str(width): width for width in AFFINE_BITS}}
        for kind, digits in bits.items():
            if kind not in KINDS:
                raise InputError(f"{place}: no kind of matrix is called {kind!r}; there are {', '.join(KINDS)}")
            if not isinstance(digits, str) or not digits or not set(digits) <= set(known):
                raise InputError(f"{place}: the bits of {kind} must be a text of {', '.join(known)}, a sign a layer")
        size = content.get("group_size", GROUP_SIZE)
        if isinstance(size, bool) or size not in AFFINE_GROUPS:
            raise InputError(f"{place}: group_size must be one of {', '.join(map(str, AFFINE_GROUPS))}")
        texts = [content.get(key, "") for key in ("name", "about")]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{place}: name and about must be texts")
        ordered = {kind: [known[digit] for digit in bits[kind]] for kind in KINDS if kind in bits}
        return cls(texts[0] or Path(place).stem, texts[1], ordered, size)


def grouped(modules: Iterable[str]) -> dict[tuple[str, int], list[str]]:
    """Canonical names of matrices by kind and layer, in the order of KINDS. Names of no kind are left out."""
    found: dict[tuple[str, int], list[str]] = {}
    names = list(modules)
    for kind, pattern in KINDS.items():
        for name in names:
            if fnmatchcase(name, pattern):
                layer = name.partition(".layers.")[2].partition(".")[0] if ".layers.*" in pattern else "0"
                found.setdefault((kind, int(layer)), []).append(name)
    return found


def table_of(modules: Iterable[Module]) -> BitTable:
    """The bits that a plan's modules will have, those of each kind's first module in a layer."""
    known = {module.name: module for module in modules}
    bits: dict[str, list[int | None]] = {}
    for (kind, _), names in grouped(known).items():
        target = known[names[0]].target
        bits.setdefault(kind, []).append(target.bits if target else None)
    return BitTable("bits", "", bits)


def published() -> list[str]:
    """The names of the recipes for the published shapes."""
    return sorted(path.stem for path in PUBLISHED.glob("*.json"))


def find_recipe(name: str) -> Recipe:
    """A recipe by name, or of a file that holds a table of bits. Raises InputError."""
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name).expanduser()
    if name in published():
        path = PUBLISHED / f"{name}.json"
    elif not name.endswith(".json"):
        raise InputError(
            f"no recipe {name!r}; there are {', '.join([*RECIPES, *published()])}, and FILE.json with a table of bits"
        )
    table = BitTable.from_json(read_json(path), str(name))
    return table.recipe()


def _digits(widths: Sequence[int | None]) -> str:
    return "".join(str(bits) if bits else FLOAT for bits in widths)
