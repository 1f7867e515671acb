"""Asking all parts: one after the other, each for itself."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx

from ...ops import device
from .. import machine
from ..experiments import on_a_mac
from .context import Context, Found, NotHereError, Part
from .plan import PLAN
from .shapes import Shapes
from .structs import AnsweredPart, MacReport

SETTINGS = (
    *("PG_MLX_OPS", "PG_MLX_KERNELS", "PG_MLX_UNPACK_ROWS", "MLX_ENABLE_TF32", "MLX_MAX_OPS_PER_BUFFER"),
    *("MLX_MAX_MB_PER_BUFFER", "MLX_METAL_FAST_SYNCH", "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"),
)
"""Environment variables that a report names, with their values. None of them holds a name of a person or a file."""

_VALUE = re.compile(r"[\w.,+-]{1,40}")
"""A value of one that may be shown as it is."""


def shapes_here(quick: bool) -> tuple[Shapes, float]:
    """What is measured on this machine, and the pace: small models where there is no GPU."""
    if not device.is_gpu():
        return Shapes.named("small"), 0.02 if quick else 0.1
    return (Shapes.named("quick"), 0.1) if quick else (Shapes.named("published"), 1.0)


def make_report(
    context: Context, note: Callable[[str], None], quick: bool = False, plan: Sequence[Part] | None = None
) -> MacReport:
    """Ask all parts, those of PLAN if no others are given. One that fails says so in its place; the others still run.
    note: called with each question and the time that is left. Only KeyboardInterrupt gets through."""
    began = time.perf_counter()
    plan = PLAN if plan is None else plan
    settings = {name: _shown(os.environ[name]) for name in SETTINGS if name in os.environ}
    answered: list[AnsweredPart] = []
    healthy = True
    for index, part in enumerate(plan):
        left = sum(other.seconds for other in plan[index:]) * context.pace
        note(f"{index + 1} of {len(plan)}, about {_duration(left)} left: {part.question}")
        done, found = ask(part, context)
        answered.append(done)
        healthy &= found is None or found.healthy
    context.release()
    return MacReport(
        quick=quick,
        on_a_mac=on_a_mac(),
        healthy=healthy,
        seconds=round(time.perf_counter() - began, 1),
        machine=machine.description(),
        settings=settings,
        parts=answered,
    )


def ask(part: Part, context: Context) -> tuple[AnsweredPart, Found | None]:
    """One part's answer, and what it found; None if it found nothing. Whatever it raises is its answer."""
    began = time.perf_counter()
    found, status = None, "failed"
    try:
        found = part.run(context)
        said, status = found.answer, "answered"
    except NotHereError as error:
        said, status = f"Left out: {scrubbed(str(error), context.private)}.", "left out"
    except MemoryError:
        said = "It failed here: there is not enough memory."
    except Exception as error:  # whatever a backend raises
        said = f"It failed here: {scrubbed(f'{type(error).__name__}: {error}', context.private)}"
    if status == "failed":
        context.release()
        _finish()
    seconds = round(time.perf_counter() - began, 2)
    answer = AnsweredPart(
        name=part.name,
        question=part.question,
        status=status,  # type: ignore[arg-type]
        seconds=seconds,
        answer=said,
        decides=part.decides,
        figures=found.figures if found else {},
    )
    return answer, found


def _finish() -> None:
    """Wait for what a failed part has begun, and forget how it ends."""
    try:
        mx.synchronize()
    except Exception:  # the same failure again
        return


def _shown(value: str) -> str:
    return value if _VALUE.fullmatch(value) else "(set)"


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def scrubbed(text: str, private: Sequence[str] = ()) -> str:
    """A message in one line, without names of folders, the user or the machine, nor those in `private`."""
    import getpass
    import socket

    line = " ".join(text.split())
    for name in (*private, str(Path.home()), str(Path.cwd())):
        if len(name) > 1:
            line = re.sub(re.escape(name) + r"[^\s'\",;:)\]]*", "<path>", line)
    line = re.sub(r"(['\"])(?:[A-Za-z]:)?[\\/].*?\1", "<path>", line)
    line = re.sub(r"(?:[A-Za-z]:)?[\\/](?:[^\s\\/:'\",;]+[\\/])+[^\s:'\",;)\]]*", "<path>", line)
    names = [socket.gethostname(), socket.gethostname().partition(".")[0]]
    with contextlib.suppress(OSError, KeyError):  # a user without a name
        names.append(getpass.getuser())
    for name in names:
        if len(name) > 2:
            line = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<name>", line)
    return line[:600]
