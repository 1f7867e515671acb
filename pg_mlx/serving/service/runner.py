"""The work of the thread that owns MLX: load the model, let requests enter, and advance all of them by a token."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlx.core as mx

from ...checkpoint.load import LoadOptions, load_with
from ...errors import InputError, PgMlxError
from ...generation import Answer, FeatureCache, Progress, Recovery, Request, Row, TokenLogprob, warm_up
from ...generation.engine import PREFILL_TOKENS, ROOM, engine_for
from ...generation.features import PATCHES
from ...memory.residency import HeldPart, held_bytes, model_scratch_bytes
from ...ops import device, watchdog
from ...ops.device import dtype_name
from ...paligemma import PaliGemma
from ...regions import Region
from ..error_codes import ServingError
from .jobs import Job
from .limits import CacheRoom, Limits
from .requests import Answered, RegionFound, Text


@dataclass(frozen=True)
class ModelInfo:
    """What is loaded."""

    model: str
    model_type: str
    """"gemma" or "gemma2"."""
    image_size: int
    """Side in pixels to which pictures are brought."""
    image_tokens: int
    """How many tokens one picture has."""
    dtype: str
    device: str
    """"gpu" or "cpu"."""
    load_s: float
    weight_bytes: int


Stage = Callable[[str, int, int], None]
"""Called with the name of a stage of loading ("fetch", "weights", "warm-up"), how much of it is done, and how much it
is."""


class Runner:
    """A model and the answers that it is giving. All methods belong to one thread; what they hand out (numbers, text,
    numpy arrays) may go to any."""

    def __init__(self, path_or_repo: str | Path, options: LoadOptions, limits: Limits, stage: Stage):
        """Load as `pg_mlx.load` does, and answer once. Raises ServingError."""
        started = time.perf_counter()
        stage("fetch", 0, 1)
        try:
            self.model, self.processor = load_with(path_or_repo, options, lambda done, of: stage("weights", done, of))
        except InputError as error:
            raise ServingError("bad_model", str(error)) from None
        except PgMlxError as error:
            raise ServingError("failed", str(error)) from None
        mx.set_cache_limit(limits.spare_bytes)  # loading has set one of its own
        weights = held_bytes(self.model)
        self._room = _room(self.model, limits, options.team.parts if options.team else [HeldPart.whole(self.model)])
        self._limits = limits
        self._jobs: dict[Row, Job] = {}
        self._lost = False
        self._features = FeatureCache(self.model, limits.feature_bytes)
        self._engine = Recovery(partial(engine_for, self.model, self.processor, limits.batch_size, self._features))
        stage("warm-up", 0, 1)
        warm_up(self.model, batch_size=min(2, limits.batch_size) if device.is_gpu() else 1)
        stage("warm-up", 1, 1)
        text, vision = self.model.config.text, self.model.config.vision
        self.info = ModelInfo(
            model=str(path_or_repo),
            model_type=text.model_type,
            image_size=vision.image_size,
            image_tokens=vision.num_patches,
            dtype=dtype_name(self.model.dtype),
            device="gpu" if device.is_gpu() else "cpu",
            load_s=time.perf_counter() - started,
            weight_bytes=weights,
        )

    @property
    def running(self) -> list[Job]:
        """Jobs that have entered and not ended, in this order."""
        return list(self._jobs.values())

    @property
    def failures(self) -> int:
        """How many requests have failed even alone since the last one that was answered."""
        return self._engine.failures

    @property
    def lost(self) -> bool:
        """Whether this process gets no more work done on the GPU."""
        return self._lost

    @property
    def feature_bytes(self) -> int:
        """Bytes of encoded pictures that are kept."""
        return self._features.held_bytes

    def check(self, request: Request) -> None:
        """Raises ServingError if this request can never be answered here."""
        prefix = self._prefix(request)
        if prefix > self._limits.prefix_tokens:
            limit = self._limits.prefix_tokens
            raise ServingError("too_large", f"pictures and prompt are {prefix} tokens; the limit is {limit}")
        if not self._fits(0, request):
            needed = self._room.needed([self._slots(request)]) + self._more_scratch(request)
            raise ServingError("out_of_memory", f"the answer may need {needed} bytes of memory; ask for fewer tokens")

    def shortened(self, request: Request) -> Request:
        """The request with as many tokens of an answer as fit in memory, if that is fewer than it asks for."""
        if self._fits(0, request):
            return request

        def limited(tokens: int) -> Request:
            return replace(request, options=replace(request.options, max_tokens=tokens))

        lengths = range(1, request.options.max_tokens)
        fit = bisect_left(lengths, True, key=lambda tokens: not self._fits(0, limited(tokens)))
        return limited(fit) if fit else request

    def drop_expired(self) -> None:
        """End the jobs that were cancelled or are past their deadline."""
        now = time.perf_counter()
        for row, job in self._jobs.items():
            if reason := job.expiry(now):
                job.finish(reason)
                row.cancel()

    def admits(self, job: Job, decoding: int = 0) -> bool:
        """Whether there is a place for it now, and memory. While requests of a failed pass are repeated, there is no
        place. decoding: bytes of pictures that are being decoded."""
        assert job.request is not None
        return self._engine.free > 0 and self._fits(len(self._jobs), job.request, decoding)

    @property
    def room_bytes(self) -> int | None:
        """Bytes for caches and for pictures that are being decoded; None for no limit."""
        return self._room.room_bytes

    def left_bytes(self, next_job: Job | None) -> int:
        """Bytes of these beside the running jobs, and the one that enters next."""
        request = next_job.request if next_job else None
        used = self._room.used(len(self._jobs), self._slots(request) if request else None)
        return (self._room.room_bytes or 0) - used - (self._more_scratch(request) if request else 0)

    def start(self, job: Job) -> None:
        """Let it enter with the next step. Raises InputError if the model does not read its pictures."""
        assert job.request is not None
        row = self._engine.add(job.request)
        self._room.enter(len(self._jobs), self._slots(job.request))
        job.begin(Answer(row, self.model, self.processor, job.submitted_at))
        self._jobs[row] = job

    def step(self) -> list[Job]:
        """A token for every running job, sent to its listener. Returns the jobs that ended. A pass that fails is
        repeated for each of its jobs alone; only those that fail alone end."""
        ended = []
        for progress in self._engine.step():
            job = self._jobs[progress.row]
            try:
                self._send(job, progress)
            except Exception as error:  # of this answer only
                job.fail_unexpectedly(error)
            self._lost |= progress.error is not None and watchdog.is_final(progress.error)
            if progress.error or progress.row.finish_reason is not None:
                ended.append(self._jobs.pop(progress.row))
            elif job.outcome:
                progress.row.cancel()
        return ended

    def _send(self, job: Job, progress: Progress) -> None:
        """One Text for all new tokens, a RegionFound for each new region, and the end. Raises what went wrong, after
        what is known has been sent."""
        if progress.error:
            raise progress.error
        assert job.answer is not None
        pieces, tokens, regions, generation = list[str](), list[TokenLogprob](), list[Region](), None
        try:
            for step in job.answer.push(progress.token_ids):
                pieces.append(step.text)
                tokens += [step.token] if step.token else []
                regions += step.regions
                generation = step.generation
        finally:
            text = "".join(pieces)
            if text or tokens:
                job.send(Text(text, tokens))
            for region in regions:
                job.send(RegionFound(region))
        if generation:
            job.finish(Answered(generation, job.begun_at - job.submitted_at))

    def _fits(self, running: int, request: Request, decoding: int = 0) -> bool:
        return self._room.fits(running, self._slots(request), self._more_scratch(request) + decoding)

    def _more_scratch(self, request: Request) -> int:
        """Bytes that reading the prefix takes beyond what is reserved for every pass."""
        prefix = self._prefix(request)
        if prefix <= PREFILL_TOKENS or self._limits.memory_bytes is None:
            return 0
        return _scratch(self.model, self._limits, prefix) - _scratch(self.model, self._limits, PREFILL_TOKENS)

    def _prefix(self, request: Request) -> int:
        return len(request.pictures) * self.model.config.vision.num_patches + len(request.prompt_ids)

    def _slots(self, request: Request) -> int:
        """The most slots that its cache may have: it grows by ROOM, or less if no row needs as much."""
        return self._prefix(request) + request.options.max_tokens + ROOM


def _room(model: PaliGemma, limits: Limits, parts: Sequence[HeldPart]) -> CacheRoom:
    """What is left for caches, and for prefixes longer than those that are read together. parts: of the model; the
    limit holds for each process by itself, so the most that one has of weights and of a token's keys and values
    counts. Raises ServingError if the model leaves nothing."""
    weights, per_token = max(part.weight_bytes for part in parts), max(part.token_bytes for part in parts)
    if limits.memory_bytes is None:
        return CacheRoom(per_token, None)
    scratch = _scratch(model, limits, PREFILL_TOKENS)
    left = limits.memory_bytes - weights - limits.feature_bytes - scratch
    if left <= 0:
        raise ServingError(
            "out_of_memory",
            f"of {limits.memory_bytes} bytes the weights take {weights}, encoded pictures up to {limits.feature_bytes} "
            f"and a pass {scratch}, which leaves none for answers",
        )
    return CacheRoom(per_token, left)


def _scratch(model: PaliGemma, limits: Limits, tokens: int) -> int:
    """Bytes of scratch memory for reading prefixes of so many tokens together, and for encoding as many pictures as go
    through the tower at a time."""
    pictures = max(1, PATCHES // model.config.vision.num_patches)
    return model_scratch_bytes(model, pictures, tokens, limits.batch_size)
