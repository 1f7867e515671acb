"""The demo checkpoint, asked directly and through a service."""

from __future__ import annotations

import functools
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pg_mlx
from helpers.commands import CAT
from pg_mlx import Generation
from pg_mlx.checkpoint.load import LoadOptions
from pg_mlx.demo import CHECKPOINT
from pg_mlx.generation import SamplingOptions
from pg_mlx.ops import device
from pg_mlx.serving.service.limits import Limits
from pg_mlx.serving.service.requests import Answered, Ask, Event, Failed, Text
from pg_mlx.serving.service.service import Service

SCENE = CHECKPOINT.parent / "scene.png"
WILD = SamplingOptions(max_tokens=8000, temperature=9.0, seed=5)
"""An answer that goes on until it is stopped: at this temperature <eos> is as likely as any other token,
and with this seed it does not come within 3,000. Choose another when the demo has been trained again."""

CAPTION = Ask("caption en", [SCENE])


@contextmanager
def service(**limits: int) -> Iterator[Service]:
    """One that is loaded. It ends at once, whatever runs."""
    running = Service(Limits(**limits))
    try:
        running.load(CHECKPOINT, LoadOptions(dtype="float32")).result()
        yield running
    finally:
        running.close(timeout=0)


class Asked:
    """A request and its events."""

    def __init__(self, service: Service, question: Ask):
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.cancel = service.submit(question, self.events.put)

    def began(self) -> None:
        """Waits for the first text."""
        assert isinstance(self.events.get(timeout=60), Text)

    def last(self) -> Answered | Failed:
        while not isinstance(event := self.events.get(timeout=60), Answered | Failed):
            pass
        return event

    def code(self) -> str:
        last = self.last()
        assert isinstance(last, Failed), last
        return last.code


def loaded() -> tuple[pg_mlx.PaliGemma, pg_mlx.Processor]:
    """The demo, as the operations in use load it."""
    return _loaded(device.gpu_ops())


@functools.cache
def _loaded(gpu_ops: bool) -> tuple[pg_mlx.PaliGemma, pg_mlx.Processor]:
    return pg_mlx.load(CHECKPOINT, dtype="float32")


@functools.cache
def alone(prompt: str, images: tuple[Path, ...], options: SamplingOptions, logprobs: bool = False) -> Generation:
    """The answer without a service."""
    return pg_mlx.generate(*loaded(), prompt, list(images), logprobs=logprobs, **asdict(options))


MIXED = [
    ("detect red circle ; blue circle", (SCENE,), SamplingOptions(), False),
    ("segment red circle", (SCENE,), SamplingOptions(), True),
    ("caption en", (CAT,), SamplingOptions(max_tokens=3), False),
    ("ocr", (SCENE, CAT), SamplingOptions(), False),
    ("caption en", (SCENE,), SamplingOptions(temperature=1.5, top_k=20, seed=4), False),
    ("segment blue star ; red circle", (CAT,), SamplingOptions(temperature=2.0, top_p=0.9, seed=5), False),
    ("", (SCENE,), SamplingOptions(max_tokens=1), True),
    ("detect square", (CAT, SCENE, CAT), SamplingOptions(max_tokens=9, temperature=1.0, seed=6), True),
]
"""prompt, pictures, options, logprobs"""
