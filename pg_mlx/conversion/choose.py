"""From options to a recipe, and what must be given with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint.adapters.base import lacks_tokenizer
from ..checkpoint.open import Checkpoint
from ..errors import InputError
from ..quantization import Recipe, uniform
from .bit_table import find_recipe
from .plan import Plan
from .samples import Calibration, Sample, calibration_samples


def choose_recipe(
    quantize: bool,
    q_bits: int | None,
    q_group_size: int | None,
    q_mode: str | None,
    q_recipe: str | None,
    q_overrides: Mapping[str, str] | None,
    q_method: str | None = None,
) -> Recipe | None:
    """The recipe that a set of options means: none, a named one, or one packing for all. Raises InputError."""
    by_numbers = q_bits is not None or q_group_size is not None or q_mode is not None
    if by_numbers and q_recipe:
        raise InputError("a recipe and bits, group size or mode exclude each other")
    if not (quantize or by_numbers or q_recipe or q_overrides or q_method):
        return None
    recipe = uniform(q_bits, q_group_size, q_mode) if by_numbers else find_recipe(q_recipe or "balanced")
    return recipe.with_overrides(q_overrides or {}).by(q_method or "rtn")


def check_method(recipe: Recipe | None, plan: Plan) -> None:
    """Raises InputError if the method cannot pack what is planned."""
    if recipe is None or recipe.method == "rtn":
        return
    other = next((m for m in plan.modules if m.target and m.target.mode != "affine"), None)
    if other is not None and other.target is not None:
        raise InputError(
            f"method {recipe.method} fits affine scales, but {other.name} is to be {other.target.mode}; use method rtn"
        )


def calibration_of(
    recipe: Recipe | None, folder: Calibration | None, prompts: Sequence[str] = ()
) -> tuple[list[Sample], list[Sample]] | None:
    """The samples that calibrate and those that judge, if the recipe's method needs some.

    Raises InputError if there is no folder, too few pictures in it or bad ones; and for prompts that nothing needs.
    """
    if recipe is None or recipe.method != "gptq":
        if prompts:
            raise InputError("calibration prompts are for method gptq (--q-method gptq)")
        return None
    if folder is None:
        raise InputError("method gptq needs pictures to calibrate on (--calibration DIR); --q-method mse needs none")
    return calibration_samples(folder, prompts)


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Raises InputError if there is none, it cannot be read, or has ids beyond the rows of the embedding."""
    if checkpoint.tokenizer is None:
        raise InputError(f"{lacks_tokenizer(checkpoint.name)}, or convert with --no-tokenizer")
    pieces, rows = checkpoint.read_tokenizer().vocab_size, checkpoint.config.text.vocab_size
    if pieces > rows:
        raise InputError(f"{checkpoint.tokenizer} has {pieces} pieces, but the embedding only {rows} rows")
