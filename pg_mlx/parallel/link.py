"""What the ranks say to each other, and what happens when one falls silent.

Rank 0 gives commands, and all other ranks wait for the next one. Every message is an all_gather, or a send to the next
rank, on the CPU, so a rank that waits for a command does not hold the GPU. All messages of a command are over before
the next command, so they cannot overtake each other. Between commands a thread of rank 0 sends signs of life. A message
that is waited for cannot be broken off, so a watchdog on every rank ends the process with one line if the others say
nothing for too long.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NoReturn, TypeVar

import mlx.core as mx
import numpy as np

from .group import required

R = TypeVar("R")

SILENCE_S = 60.0
"""Default for how long the others may be silent."""

LOST = 70
"""Exit code of a rank that has lost the others."""

WORDS = 128
"""Integers of a command's first message; a longer command has a second one."""

_FREE_TOKENS, _TOKEN_S = 512, 0.05
"""A long pass is not silence: each token beyond the first of these numbers gives it so many seconds more, five times
what a 28B takes on an M4 Pro."""

_MANY_BYTES = 256 << 10
"""Messages of more bytes are added up by all_sum where there are more than two ranks (Link.total)."""


class Command(IntEnum):
    """What rank 0 asks of the others."""

    ALIVE = 0
    LOAD = 1
    PREFILL = 2
    EXTEND = 3
    GROW = 4
    SELECT = 5
    JOIN = 6
    STOP = 7


class Link:
    """This rank's connection to the others. Methods say which ranks may call them, if not all call them together.

    group: of two ranks at least. silence_s: how long the others may be silent.
    """

    def __init__(self, group: mx.distributed.Group, silence_s: float = SILENCE_S):
        self.rank, self.size, self.silence_s = group.rank(), group.size(), silence_s
        self.lock = threading.RLock()
        """Rank 0 holds it while a command is under way."""
        self.dropped: list[int] = []
        """Rank 0: handles of caches that it holds no longer; the next command names them."""
        self.messages = 0
        """How many messages this rank has taken part in."""
        self._group, self._until, self._said, self._ended = group, math.inf, time.monotonic(), False
        threading.Thread(target=self._watch, daemon=True).start()
        if self.rank == 0:
            threading.Thread(target=self._sign, daemon=True).start()

    # --- messages --------------------------------------------------------------------------------------

    def gather(self, x: mx.array) -> mx.array:
        """Everybody's x [...], of one shape and dtype -> [ranks, ...], not yet evaluated: one message."""
        self.messages += 1
        return mx.distributed.all_gather(x[None], group=self._group, stream=mx.cpu)

    def total(self, x: mx.array) -> mx.array:
        """The sum of everybody's x [...], the same bits on all ranks, not yet evaluated: one message.

        all_gather takes half as long as all_sum between two ranks, and rounds once; among more ranks it moves more
        bytes, which counts where there are many.
        """
        if self.size > 2 and x.nbytes > _MANY_BYTES:
            self.messages += 1
            return mx.distributed.all_sum(x, group=self._group, stream=mx.cpu)
        return self.gather(x).astype(mx.float32).sum(axis=0).astype(x.dtype)

    def broadcast(self, x: mx.array | None, shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
        """Rank 0's x on all ranks, evaluated: one message. The others give None, and its shape and dtype."""
        blank = mx.zeros(list(shape), dtype, stream=mx.cpu)
        everybody = self.gather(blank if x is None else x)
        mx.eval(everybody)
        return everybody[0]

    def send(self, x: mx.array, to: int) -> None:
        """Send x to a neighbour, once it is computed. Returns when it is on its way."""
        mx.eval(x)
        self.messages += 1
        mx.eval(mx.distributed.send(x, to, group=self._group, stream=mx.cpu))

    def receive(self, shape: Sequence[int], dtype: mx.Dtype, source: int) -> mx.array:
        """What a neighbour sends, evaluated."""
        self.messages += 1
        x = mx.distributed.recv(list(shape), dtype, source, group=self._group, stream=mx.cpu)
        mx.eval(x)
        return x

    def exchange(self, text: str) -> list[str]:
        """Everybody's text, by rank."""
        data = np.frombuffer(text.encode(), np.uint8)
        with self.waiting():
            sizes = self._numbers([len(data)])[:, 0].tolist()
            padded = np.zeros(max(*sizes, 1), np.int32)
            padded[: len(data)] = data
            rows = self._numbers(padded.tolist())
        return [bytes(row[:size].astype(np.uint8)).decode() for row, size in zip(rows, sizes, strict=True)]

    def _numbers(self, numbers: Sequence[int]) -> np.ndarray:
        """Everybody's integers, equally many: int32 [ranks, len(numbers)]. It does not use the GPU."""
        everybody = self.gather(mx.array(np.array(numbers, np.int32)))
        mx.eval(everybody)
        return np.array(everybody)

    # --- commands --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def command(self, command: Command, values: Sequence[int] = (), tokens: int = 0) -> Iterator[None]:
        """Rank 0: give a command to the others; rank 0 does its own part within the block. tokens: how many a pass
        reads. A failure within the block ends the process, because the ranks would no longer be in step."""
        with self.lock, self.waiting(tokens=tokens):
            dropped = [self.dropped.pop() for _ in range(len(self.dropped))]
            words = [int(command), len(dropped), *dropped, *values]
            self._numbers(([len(words), *words] + [0] * WORDS)[:WORDS])
            if len(words) >= WORDS:
                self._numbers(words[WORDS - 1 :])
            self._said = time.monotonic()
            yield
            self._said = time.monotonic()

    def next_command(self) -> tuple[Command, list[int], list[int]]:
        """The other ranks: wait for rank 0's next command, its values, and the handles of caches that it has dropped.
        Signs of life are not reported."""
        while True:
            with self.waiting(self.silence_s + 1):
                length, *words = self._numbers([0] * WORDS)[0].tolist()
                if length >= WORDS:
                    words += self._numbers([0] * (length - WORDS + 1))[0].tolist()
            command, count = Command(words[0]), words[1]
            if command is not Command.ALIVE:
                return command, words[2 + count : length], words[2 : 2 + count]

    def together(self, work: Callable[[], R]) -> tuple[R | None, Exception | None]:
        """All ranks: do some work that may take long, as reading weights, while a thread exchanges signs of life with
        the other ranks, which do the same. Returns its result, or its error, when all ranks are done."""
        done = threading.Event()
        signs = threading.Thread(target=self._signs_until, args=(done,), daemon=True)
        signs.start()
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        done.set()
        signs.join()
        return result, failure

    def _signs_until(self, done: threading.Event) -> None:
        pause = 0.01
        while True:
            with self.waiting():
                everybody = self._numbers([done.is_set()])
            if everybody.all():
                return
            done.wait(pause)
            pause = min(2 * pause, self.silence_s / 4)

    def stop(self) -> None:
        """Rank 0: let the others end. If a command was broken off, they end when this process does."""
        if self.lock.acquire(timeout=self.silence_s):
            if not self._ended and self._until == math.inf:
                with self.command(Command.STOP):
                    self._ended = True
            self.lock.release()

    # --- silence ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def waiting(self, seconds: float | None = None, tokens: int = 0) -> Iterator[None]:
        """Within the block this rank waits for others, so the watchdog ends it after so many seconds (None: silence_s),
        and more for a pass of many tokens. An error within it ends the process, too. After Ctrl-C the ranks are out of
        step: only `stop` may follow. In nested blocks the outer one counts."""
        if self._until != math.inf:
            yield
            return
        more = max(0, tokens - _FREE_TOKENS) * _TOKEN_S
        self._until = time.monotonic() + (self.silence_s if seconds is None else seconds) + more
        try:
            yield
        except Exception as error:
            self.give_up(f"lost the other ranks: {first_line(error)}")
        self._until = math.inf

    def give_up(self, why: str) -> NoReturn:
        """End this process with one line."""
        with self._one_line:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    stream.flush()
            with contextlib.suppress(OSError):
                os.write(2, f"pg_mlx: rank {self.rank} of {self.size} {why}\n".encode())
            os._exit(LOST)

    _one_line = threading.Lock()
    """Lets one thread print where several give up."""

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self.silence_s / 50))
            if time.monotonic() > self._until:
                self.give_up(f"has heard nothing of the others for {self.silence_s:g} s, so it ends")

    def _sign(self) -> None:
        """A sign of life in every quarter of the time of silence, between two commands."""
        while not self._ended:
            time.sleep(self.silence_s / 16)
            if time.monotonic() - self._said > self.silence_s / 4 and self.lock.acquire(blocking=False):
                if not self._ended:
                    with self.waiting(0.75 * self.silence_s), self.command(Command.ALIVE):
                        pass
                self.lock.release()


def join(silence_s: float = SILENCE_S) -> Link:
    """The link of this process to the others that mlx.launch has started. Raises InputError if there are none."""
    return Link(required(), silence_s)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
