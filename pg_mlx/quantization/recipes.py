"""Which module gets how many bits: named recipes, uniform settings, and overrides by glob.

Names are canonical module names, `language_model.model.layers.3.mlp.down_proj`. The first rule that matches decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ..errors import InputError
from .modes import FLOAT_MODES, Quantization

METHODS = {
    "rtn": "codes nearest to the weights, as mx.quantize chooses them",
    "mse": "scale and bias fitted to the weights, without any data",
    "gptq": "codes that keep the outputs for given pictures (--calibration DIR)",
}
"""The ways to choose codes, scales and biases. What is written has the same form and size."""


@dataclass(frozen=True)
class Rule:
    """How to pack the modules whose name matches `pattern` and whose columns are not a multiple of `unless_multiple`
    (0: any number of columns)."""

    pattern: str
    quantization: Quantization | None  # None: stays float
    unless_multiple: int = 0

    def matches(self, module: str, columns: int) -> bool:
        """Whether the rule is about this module. module: its canonical name."""
        fits = self.unless_multiple == 0 or columns % self.unless_multiple != 0
        return fits and fnmatchcase(module, self.pattern)


@dataclass(frozen=True)
class Recipe:
    """How to pack each module of a model. The first rule that matches decides.

    about: one line for people. A module that no rule matches stays float. method: one of METHODS. complete: it is made
    for one shape, so every matrix has a rule and every rule a matrix; for any other shape it is refused.
    """

    name: str
    about: str
    rules: tuple[Rule, ...]
    method: str = "rtn"
    complete: bool = False

    def choose(self, module: str, columns: int) -> Quantization | None:
        """The packing of a module, by its canonical name; None for float."""
        return next((rule.quantization for rule in self.rules if rule.matches(module, columns)), None)

    def with_overrides(self, overrides: Mapping[str, str]) -> Recipe:
        """This recipe with rules {glob: "BITS[/GROUP]", a floating mode, or "float"} in front. Raises InputError."""
        rules = tuple(Rule(pattern, parse_packing(text)) for pattern, text in overrides.items())
        return replace(self, name=f"{self.name}, overridden", rules=rules + self.rules) if rules else self

    def by(self, method: str) -> Recipe:
        """The same with another of METHODS. Raises InputError if there is no such method."""
        if method not in METHODS:
            raise InputError(f"no method {method!r}; there are {', '.join(METHODS)}")
        return replace(self, method=method)


def _q(bits: int, group_size: int = 64) -> Quantization:
    return Quantization(bits, group_size)


_EYES = (Rule("vision_tower.*", _q(8)), Rule("multi_modal_projector.*", _q(8)))

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "tiny",
            "4-bit decoder and head, 8-bit SigLIP and projector: the fewest bytes a token",
            (*_EYES, Rule("*", _q(4))),
        ),
        Recipe(
            "balanced",
            "4-bit decoder, 6-bit embedding/head, 8-bit SigLIP and projector; in PaliGemma 2 3B also 6 bits for the "
            "matrices of 2304 columns, because MLX's fast 4-bit kernel for one token wants a multiple of 512 columns "
            "and its 6-bit one a multiple of 256",
            (
                *_EYES,
                Rule("*.embed_tokens", _q(6)),
                Rule("*.lm_head", _q(6)),
                Rule("*", _q(6), unless_multiple=512),
                Rule("*", _q(4)),
            ),
        ),
        Recipe("quality", "8 bits everywhere", (Rule("*", _q(8)),)),
    )
}


def uniform(bits: int | None, group_size: int | None, mode: str | None) -> Recipe:
    """All modules packed alike. What is None is MLX's default for the mode. Raises InputError."""
    mode = mode or "affine"
    default_bits, default_group = FLOAT_MODES.get(mode, (4, 64))
    bits = default_bits if bits is None else bits
    quantization = Quantization(bits, default_group if group_size is None else group_size, mode)
    kind = f"{quantization.bits} bits" if mode == "affine" else mode
    return Recipe(
        f"uniform {kind}", f"{kind} in groups of {quantization.group_size} everywhere", (Rule("*", quantization),)
    )


def parse_packing(text: str) -> Quantization | None:
    """The packing that "6", "4/32" or "mxfp4" names; None for "float". Raises InputError for other text."""
    if text == "float":
        return None
    if text in FLOAT_MODES:
        return Quantization(*FLOAT_MODES[text], text)
    numbers = re.fullmatch(r"(\d+)(?:/(\d+))?", text, re.ASCII)
    if numbers is None:
        raise InputError(
            f"{text!r} is not a packing; write bits (6), bits/group (4/32), {', '.join(FLOAT_MODES)} or float"
        )
    return Quantization(int(numbers[1]), int(numbers[2] or 64))
