"""Before weights are read, all ranks look at the same checkpoint, and compare what they have found."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import __version__
from ..checkpoint.fingerprint import fingerprint
from ..checkpoint.footprint import float_bytes, needed_bytes, weight_bytes
from ..checkpoint.load import LoadOptions, Opened, compute_dtype, find
from ..errors import InputError, PgMlxError
from ..memory.estimate import check_fits
from ..memory.residency import SMALL_BYTES
from ..ops.device import dtype_name
from .link import Link, first_line
from .plan import RankPart, part_of
from .shares import checked_shares

_LOCAL = ("team", "progress")


@dataclass(frozen=True)
class LoadRequest:
    """What rank 0 wants to be loaded, as it is sent to the others."""

    model: str
    mode: str
    shares: tuple[int, ...] | None
    options: dict[str, Any]
    """Fields of LoadOptions."""

    @classmethod
    def of(cls, model: str | Path, mode: str, shares: Sequence[int] | None, options: LoadOptions) -> LoadRequest:
        """From what `load_with` is given."""
        given = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in _LOCAL}
        plain = {name: _plain(value) for name, value in given.items()}
        return cls(str(model), mode, None if shares is None else tuple(shares), plain)

    def to_numbers(self) -> list[int]:
        """As values of a command."""
        return list(json.dumps(asdict(self)).encode())

    @classmethod
    def from_numbers(cls, numbers: list[int]) -> LoadRequest:
        """The inverse of `to_numbers`."""
        return cls(**json.loads(bytes(numbers)))

    @property
    def load(self) -> LoadOptions:
        """The options as `load_with` takes them."""
        return LoadOptions(**self.options)


def _plain(value: Any) -> Any:
    if isinstance(value, mx.Dtype):
        return dtype_name(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Facts:
    """What a rank has found."""

    host: str
    programs: str = ""
    checkpoint: str = ""
    dtype: str = ""
    error: str = ""
    weight_bytes: int = 0
    """What its part of the weights takes."""
    needed_bytes: int = 0
    """What loading that part and one answer take at most."""
    about: str = ""
    """Its part in words."""


@dataclass(frozen=True)
class Agreed:
    """What this rank is to load, once all ranks agree."""

    found: Opened
    part: RankPart
    options: LoadOptions


def agree(link: Link, ask: LoadRequest, need_tokenizer: bool = False) -> Agreed:
    """Find this rank's part, and compare with the others. need_tokenizer: whether this rank does. Raises InputError on
    all ranks if one of them refuses or they differ: what rank 0 prints."""
    result, failure = link.together(lambda: prepare(ask, link.rank, link.size, need_tokenizer))
    facts = Facts(socket.gethostname(), error=_error(failure)) if result is None else result[1]
    everybody = [Facts(**json.loads(text)) for text in link.exchange(json.dumps(asdict(facts)))]
    if (why := disagreement(everybody, ask.model)) is not None:
        raise InputError(why)
    assert result is not None
    return result[0]


def prepare(ask: LoadRequest, rank: int, size: int, need_tokenizer: bool = False) -> tuple[Agreed, Facts]:
    """A rank's part and the facts about it, from headers only. Raises InputError for what this rank cannot do."""
    options = ask.load
    shares = checked_shares(ask.shares, size)
    found = find(ask.model, options, need_tokenizer)
    dtype = compute_dtype(options.dtype)
    if float_bytes(found.checkpoint) - weight_bytes(found.checkpoint, dtype) > SMALL_BYTES:
        options = replace(options, keep_quantized=True)  # as one process would do with the whole model
    part = part_of(found.checkpoint, ask.mode, rank, shares)
    needed = needed_bytes(part.checkpoint, dtype)
    if options.allowed_bytes is not None:
        check_fits(needed, options.allowed_bytes)
    facts = Facts(
        host=socket.gethostname(),
        programs=f"pg_mlx {__version__} with MLX {version('mlx')}",
        checkpoint=fingerprint(ask.model, ask.options),
        dtype=dtype_name(dtype),
        weight_bytes=weight_bytes(part.checkpoint, dtype),
        needed_bytes=needed,
        about=part.about,
    )
    return Agreed(found, part, options), facts


def disagreement(everybody: Sequence[Facts], model: str) -> str | None:
    """What keeps the ranks from loading together, in one line; None if nothing does."""
    for rank, facts in enumerate(everybody):
        if facts.error:
            return facts.error if all(facts.error == other.error for other in everybody) else (
                f"{_name(rank, facts)}: {facts.error}"
            )  # fmt: skip
    first = everybody[0]
    for rank, facts in enumerate(everybody[1:], 1):
        name = _name(rank, facts)
        if facts.programs != first.programs:
            return f"{name} runs {facts.programs}, but rank 0 {first.programs}"
        if facts.checkpoint != first.checkpoint:
            return f"{name} has other files in {model} than rank 0"
        if facts.dtype != first.dtype:
            return f"{name} would compute in {facts.dtype}, but rank 0 in {first.dtype}: give --dtype"
    return None


def _name(rank: int, facts: Facts) -> str:
    return f"rank {rank} on {facts.host}"


def _error(failure: Exception | None) -> str:
    if failure is None:
        return ""
    return str(failure) if isinstance(failure, PgMlxError) else f"unexpected failure: {first_line(failure)}"
