"""The ranks above 0: they do what rank 0 says, and print nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx

from ..cache import KVCache
from ..checkpoint.load import load_weights
from ..errors import InputError
from ..gemma import Gemma
from ..memory.residency import release
from .agreement import Agreed, LoadRequest, agree, read
from .decoder import Mode, read_list
from .link import Command, Link
from .modes import mode_of

ReadSome = Callable[[mx.array, list[int] | None], tuple[mx.array, KVCache]]
"""As decoder.Read, with how many tokens of each row are real (None: all)."""


class Follower:
    """A rank above 0: its part of the decoder, and its parts of the caches by rank 0's handles."""

    def __init__(self, link: Link):
        self._link = link
        self._gemma: Gemma | None = None
        self._mode: Mode | None = None
        self._caches: dict[int, KVCache] = {}

    def run(self) -> None:
        """Do what rank 0 says, until it says stop. A failure ends the process (Link.waiting)."""
        while True:
            command, values, dropped = self._link.next_command()
            for handle in dropped:
                self._caches.pop(handle, None)
            if command is Command.STOP:
                return
            if command is Command.LOAD:
                self._load(LoadRequest.from_numbers(values))
                continue
            tokens = values[2] * values[3] if command in (Command.PREFILL, Command.EXTEND) else 0
            with self._link.waiting(self._link.silence_s + 1, tokens=tokens):
                self._obey(command, values)

    def _load(self, ask: LoadRequest) -> None:
        self._gemma, self._mode, self._caches = None, None, {}
        release()
        try:
            agreed = agree(self._link, ask)
        except InputError:
            return  # rank 0 says why
        loaded, _, everybody = read(self._link, agreed, partial(self._read, agreed))
        if not any(facts.error for facts in everybody):
            self._gemma = loaded

    def _read(self, agreed: Agreed) -> Gemma:
        self._mode = mode_of(agreed.part)
        decoder = load_weights(agreed.part.checkpoint, agreed.options).language_model
        self._mode.prepare(self._link, decoder)
        return decoder

    def _obey(self, command: Command, values: list[int]) -> None:
        caches = self._caches
        if command is Command.PREFILL:
            handle, capacity, *rest = values
            made = self._pass(rest, lambda x, lengths: self._decoder.prefill(x, capacity, lengths))
        elif command is Command.EXTEND:
            old, handle, *rest = values
            given = [caches.pop(old)]  # nothing else holds it, so that new tokens are written in place
            made = self._pass(rest, lambda x, counts: self._decoder.extend(x, given.pop(), counts))
        elif command is Command.GROW:
            old, handle, capacity = values
            made = caches[old].grown(capacity)
        elif command is Command.SELECT:
            old, handle, *rows = values
            made = caches[old].select(rows)
        else:
            first, second, handle = values
            made = caches[first].join(caches[second])
        mx.eval(made.layers)
        caches[handle] = made

    def _pass(self, values: list[int], read: ReadSome) -> KVCache:
        assert self._mode is not None
        shape, rest = values[:3], values[3:]
        numbers = read_list(rest)
        rows, tokens = rest[::2], rest[1::2]

        def head(hidden: mx.array) -> mx.array:
            return self._decoder.head_table.as_head(hidden[mx.array(rows), mx.array(tokens)])

        return self._mode.follow(
            self._link, shape, self._decoder.dtype, lambda x: read(x, numbers), head if rest else None
        )

    @property
    def _decoder(self) -> Gemma:
        assert self._gemma is not None, "rank 0 asks for a pass before a model is loaded"
        return self._gemma
