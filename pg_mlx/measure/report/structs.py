"""The report as it is written. docs/report.schema.json is made from these structs (python -m tools.write_schemas)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class AnsweredPart(msgspec.Struct, kw_only=True, frozen=True):
    """One question and what was found."""

    name: str
    """A short name that does not change between versions."""
    question: str
    status: Literal["answered", "failed", "left out"]
    """"left out": this machine cannot answer it, or nothing was given to answer it with."""
    seconds: float
    """The time that it took."""
    answer: str
    """In words; what went wrong, if it failed."""
    decides: str
    """In words: what to do, depending on the figures."""
    figures: dict[str, Any] = {}
    """Times in seconds, sizes in bytes. A ratio is a time divided by the time of the usual way."""


class MacReport(msgspec.Struct, kw_only=True, frozen=True):
    """A whole report. It holds no names of the machine, its user or files."""

    format: Literal[1] = 1
    """Changes when a field changes its meaning."""
    quick: bool
    """Whether times were taken for a minute only, on models of few layers."""
    on_a_mac: bool
    """If not, the figures decide nothing about a Mac."""
    healthy: bool
    """Whether every check of a kernel and of an answer was right."""
    seconds: float
    machine: dict[str, Any]
    """Chip, memory, versions and settings, as in `pg-mlx doctor --json`."""
    settings: dict[str, str]
    """Environment variables of pg_mlx and MLX that change how a Mac computes, if they are set."""
    parts: list[AnsweredPart]
