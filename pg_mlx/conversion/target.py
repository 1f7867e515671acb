"""A size that the result is to have, instead of a recipe: what was asked for, and what that means for a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..files.shards import SHARD_BYTES
from ..memory.size import format_size, parse_size
from ..quantization import METHODS, Quantization, Recipe, uniform
from ..quantization.fast_widths import fast_widths
from ..quantization.modes import AFFINE_BITS
from .allocate import MEASURED_BITS
from .bit_table import GROUP_SIZE, grouped, published
from .choose import calibration_of, choose_recipe
from .plan import Module, Plan
from .samples import Calibration, Sample, calibration_samples

MAX_MEASURING = 40
"""Pictures on which sensitivities are measured."""

FEWEST, MOST = AFFINE_BITS[0], AFFINE_BITS[-1]
_READ_ONCE = ("SigLIP", "projector")
"""Components that no token reads."""


@dataclass(frozen=True)
class SizeTarget:
    """A size in bytes of the file ("size") or of what each token reads ("per-token"), or bits a weight ("bits")."""

    what: str
    amount: float
    option: str
    """As it was given on the command line."""
    method: str = "rtn"

    def recipe(self, bits: int) -> Recipe:
        """The same bits everywhere, in groups as the result will have them."""
        return uniform(bits, GROUP_SIZE, None).by(self.method)


Packing = Recipe | SizeTarget
"""What a conversion is to pack by."""


def choose_packing(
    quantize: bool,
    q_bits: int | None,
    q_group_size: int | None,
    q_mode: str | None,
    q_recipe: str | None,
    q_overrides: Mapping[str, str] | None,
    q_method: str | None,
    target_size: str | int | None = None,
    target_per_token: str | int | None = None,
    target_bits: float | None = None,
) -> Packing | None:
    """The recipe or the target that a set of options means. Raises InputError, also for two that exclude each other."""
    given = {"size": target_size, "per-token": target_per_token, "bits": target_bits}
    targets = {what: value for what, value in given.items() if value is not None}
    if not targets:
        return choose_recipe(quantize, q_bits, q_group_size, q_mode, q_recipe, q_overrides, q_method)
    if len(targets) > 1:
        raise InputError(f"{' and '.join(f'--target-{what}' for what in targets)} exclude each other")
    ((what, value),) = targets.items()
    others = {
        **{"--q-recipe": q_recipe, "--q-bits": q_bits, "--q-group-size": q_group_size, "--q-mode": q_mode},
        "--q-override": q_overrides or None,
    }
    for option, other in others.items():
        if other is not None:
            raise InputError(f"--target-{what} chooses the bits itself; it and {option} exclude each other")
    if q_method is not None and q_method not in METHODS:
        raise InputError(f"no method {q_method!r}; there are {', '.join(METHODS)}")
    method = q_method or "rtn"
    if target_bits is None:
        return SizeTarget(what, parse_size(str(value)), f"--target-{what} {value}", method)
    bits = float(target_bits)
    if not (math.isfinite(bits) and FEWEST <= bits <= MOST):
        raise InputError(f"--target-bits {bits:g} is not between {FEWEST} and {MOST}")
    return SizeTarget(what, bits, f"--target-{what} {bits:g}", method)


def packing_samples(
    packing: Packing | None, folder: Calibration | None, prompts: Sequence[str] = ()
) -> tuple[list[Sample], list[Sample]] | None:
    """The samples that calibrate and those that judge, if a packing needs some. Raises InputError if there are not
    enough pictures, and for prompts that nothing needs."""
    if not isinstance(packing, SizeTarget):
        return calibration_of(packing, folder, prompts)
    if folder is None:
        raise InputError(
            f"--target-{packing.what} needs pictures, to measure what each matrix is worth (--calibration DIR); "
            f"without any take a recipe, such as --q-recipe {published()[0]}"
        )
    return calibration_samples(folder, prompts, "a target needs {} or more")


@dataclass(frozen=True)
class Group:
    """Matrices that get the same bits, by kind and layer."""

    kind: str
    layer: int
    modules: tuple[Module, ...]

    def bytes_at(self, bits: int, item_bytes: int) -> int:
        """Their size at a width. item_bytes: of a scale."""
        packing = Quantization(bits, GROUP_SIZE)
        return sum(module.bytes_of(packing, item_bytes, *module.padded) for module in self.modules)

    @property
    def fast(self) -> tuple[int, ...]:
        """The widths with Metal's fast kernel for one token; all where no token reads them."""
        module = self.modules[0]
        return AFFINE_BITS if module.component in _READ_ONCE else fast_widths(module.padded[1])


@dataclass(frozen=True)
class Budget:
    """What a target means for a plan."""

    groups: list[Group]
    """Those whose bits are to be chosen."""
    settled: list[Group]
    """Those that have the most bits, since no token reads them."""
    limit: int
    """Bytes for `groups`."""
    rest: int
    """Bytes of everything else that the target is about."""
    file_rest: int
    """Bytes of the files without `groups`, their heads included."""

    @property
    def file_bytes(self) -> int:
        """The most bytes that the files will have."""
        return self.limit + self.file_rest

    def answering_bits(self, item_bytes: int) -> int:
        """Bits of the result that answers about the pictures if the source cannot: the most everywhere that fit, but
        at least three, since with fewer a model does not answer well enough."""
        fitting = [bits for bits in AFFINE_BITS if self._uniform(bits, item_bytes) <= self.limit]
        return max(MEASURED_BITS, *fitting)

    def answering_bytes(self, item_bytes: int) -> int:
        """Its files, about."""
        return self.file_rest + self._uniform(self.answering_bits(item_bytes), item_bytes)

    def plan_of(self, target: SizeTarget, item_bytes: int, pictures: int) -> list[str]:
        """What is known before anything is measured, as lines for people. pictures: those that calibrate."""
        values = sum(module.rows * module.columns for group in self.groups for module in group.modules)
        measuring = min(pictures, MAX_MEASURING)
        lines = [
            f"{target.option}: {format_size(self.limit)} for {len(self.groups)} groups of matrices, "
            f"{self.limit * 8 / values:.2f} bits a weight with scales; {format_size(self.rest)} for the rest",
            f"the source answers, or {self.answering_bits(item_bytes)} bits everywhere if it does not fit; then each "
            f"group is packed alone, and its divergence is measured on {measuring} of the pictures",
        ]
        if self.settled:
            lines.append(
                f"{len(self.settled)} groups that no token reads get {MOST} bits; the file has at most "
                f"{format_size(self.file_bytes)}"
            )
        return lines

    def _uniform(self, bits: int, item_bytes: int) -> int:
        return sum(group.bytes_at(bits, item_bytes) for group in self.groups)

    @classmethod
    def of(cls, target: SizeTarget, plan: Plan, item_bytes: int, header_bytes: int) -> Budget:
        """plan: for any packing in the same groups. item_bytes: of a float and of a scale. header_bytes: of a shard.

        Raises InputError if the target is less than the fewest bits take, or more than the most.
        """
        modules = {module.name: module for module in plan.modules}
        packed = [name for name, module in modules.items() if module.target]
        every = [
            Group(kind, layer, tuple(modules[name] for name in names))
            for (kind, layer), names in grouped(packed).items()
        ]
        chosen = {module.name for group in every for module in group.modules}
        rest = [module for name, module in modules.items() if name not in chosen]
        groups, settled, amount = every, list[Group](), int(target.amount)
        if target.what == "bits":
            amount = int(target.amount * sum(module.parameters for module in plan.modules) / 8)
        left = file_rest = sum(module.bytes_after(item_bytes) for module in rest)
        if target.what == "per-token":
            read = read_by_tokens(plan.modules)
            groups = [group for group in every if group.modules[0].component in read]
            settled = [group for group in every if group.modules[0].component not in read]
            left = sum(module.bytes_after(item_bytes) for module in rest if module.component in read)
            file_rest += sum(group.bytes_at(MOST, item_bytes) for group in settled)
        head = header_bytes * (1 + (file_rest + amount) // SHARD_BYTES)
        file_rest += head
        left += head if target.what != "per-token" else 0
        least, most = (left + sum(group.bytes_at(bits, item_bytes) for group in groups) for bits in (FEWEST, MOST))
        if not least <= amount <= most:
            raise InputError(
                f"{target.option} is {'less' if amount < least else 'more'} than is possible: "
                f"{FEWEST} bits everywhere take {_size(target, plan, least)}, {MOST} bits {_size(target, plan, most)}"
            )
        return cls(groups, settled, amount - left, left, file_rest)


def read_by_tokens(modules: Sequence[Module]) -> tuple[str, str]:
    """The components that every token decoded reads."""
    own = any(module.component == "head of its own" for module in modules)
    return "decoder", "head of its own" if own else "embedding/head"


def _size(target: SizeTarget, plan: Plan, size: int) -> str:
    if target.what != "bits":
        return format_size(size)
    return f"{size * 8 / sum(module.parameters for module in plan.modules):.2f} a weight, scales included"
