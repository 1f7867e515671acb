"""Before weights are read, all ranks look at the same checkpoint, and compare what they have found."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from .. import __version__
from ..checkpoint.fingerprint import fingerprint
from ..checkpoint.footprint import float_bytes, needed_bytes, weight_bytes
from ..checkpoint.load import LoadOptions, Opened, compute_dtype, find
from ..errors import InputError, PgMlxError
from ..memory.estimate import check_fits
from ..memory.residency import SMALL_BYTES, held_bytes
from ..ops.device import dtype_name
from .link import Link, first_line
from .plan import RankPart, part_of
from .shares import checked_shares

R = TypeVar("R")

_LOCAL = ("team", "progress")
"""What rank 0 keeps to itself of the options."""


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
        """A request for what `load_with` is given."""
        given = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in _LOCAL}
        plain = {name: _plain(value) for name, value in given.items()}
        return cls(str(model), mode, None if shares is None else tuple(shares), plain)

    def to_numbers(self) -> list[int]:
        """The request as integers of a command."""
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
    """The versions of pg_mlx and MLX."""
    weights: str = ""
    """A digest of its files of weights and configurations."""
    dtype: str = ""
    error: str = ""
    weight_bytes: int = 0
    """What its part of the weights takes."""
    token_bytes: int = 0
    """What the keys and values of one token take in its part."""
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
    facts: Facts


def agree(link: Link, ask: LoadRequest, need_tokenizer: bool = False) -> Agreed:
    """Find this rank's part, and compare with the others. need_tokenizer: whether this rank needs one. Raises
    InputError on all ranks if one of them refuses or they differ; rank 0 prints it."""
    result, failure = link.together(lambda: prepare(ask, link.rank, link.size, need_tokenizer))
    facts = Facts(socket.gethostname(), error=_error(failure)) if result is None else result.facts
    if (why := disagreement(_exchanged(link, facts), ask.model)) is not None:
        raise InputError(why)
    assert result is not None
    return result


def read(link: Link, agreed: Agreed, work: Callable[[], R]) -> tuple[R | None, Exception | None, list[Facts]]:
    """Read this rank's weights, while the other ranks read theirs. work: returns a model, or a model and more. Returns
    its result or its error, and what all ranks now hold."""
    result, failure = link.together(work)
    facts = replace(agreed.facts, error="" if failure is None else first_line(failure))
    if result is not None:
        model = result[0] if isinstance(result, tuple) else result
        assert isinstance(model, nn.Module)
        facts = replace(facts, weight_bytes=held_bytes(model))
    return result, failure, _exchanged(link, facts)


def _exchanged(link: Link, facts: Facts) -> list[Facts]:
    """Everybody's facts, by rank."""
    return [Facts(**json.loads(text)) for text in link.exchange(json.dumps(asdict(facts)))]


def prepare(ask: LoadRequest, rank: int, size: int, need_tokenizer: bool = False) -> Agreed:
    """A rank's part and the facts about it, from headers only. Raises InputError for what this rank cannot do."""
    options = ask.load
    if rank:  # it reads no text and draws no masks, so it needs no files for that
        options = replace(options, tokenizer=None, mask_decoder=None)
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
        weights=fingerprint(ask.model, ask.options, weights_only=True),
        dtype=dtype_name(dtype),
        weight_bytes=weight_bytes(part.checkpoint, dtype),
        token_bytes=part.checkpoint.config.text.cache_bytes(dtype.size),
        needed_bytes=needed,
        about=part.about,
    )
    return Agreed(found, part, options, facts)


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
        if facts.weights != first.weights:
            return f"{name} has other weights in {model} than rank 0"
        if facts.dtype != first.dtype:
            return f"{name} would compute in {facts.dtype}, but rank 0 in {first.dtype}: give --dtype"
    return None


def _name(rank: int, facts: Facts) -> str:
    return f"rank {rank} on {facts.host}"


def _error(failure: Exception | None) -> str:
    if failure is None:
        return ""
    return str(failure) if isinstance(failure, PgMlxError) else f"unexpected failure: {first_line(failure)}"
