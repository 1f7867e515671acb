"""The core of all generation: a batch of answers that grow step by step. Rows enter and leave between steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from itertools import groupby

import mlx.core as mx

from ..cache import KVCache
from ..errors import InputError
from ..linear import Ids
from ..ops import device
from ..paligemma import PaliGemma
from ..processor import Processor
from ..timeline import timed
from .features import FeatureCache
from .next_tokens import NextTokens, no_numbers
from .request import Request
from .rows import Asks, Progress, Row, asks_ahead
from .sampling import Allowed, bar, choose, needed

ROOM = 256
"""Slots by which the cache grows. Growing copies it, once in as many steps as this."""

PREFILL_TOKENS = 2048
"""Prefix tokens that are read in one pass, unless a single row has more. Scratch memory grows with them (a 3B model's
MLP takes 100 kB each in 16 bits), and beyond a thousand tokens a matrix product gains nothing by more."""


class Engine:
    """Up to `batch_size` answers at a time. Everything above it is a loop around `step`:

        row = engine.add(request)                       # any time between two steps
        while engine.busy:
            for progress in engine.step(): ...          # one token for every running row

    A row's tokens do not depend on its neighbours: it has its own positions, mask, options and random numbers. (In 16
    bits a product of several rows may round otherwise than one of a single row.) All methods must be called on the
    thread that owns MLX; only Row.cancel may be called on any.
    """

    def __init__(
        self,
        model: PaliGemma,
        *,
        eos_id: int,
        vocab_size: int,
        barred: Collection[int] = (),
        batch_size: int = 1,
        features: FeatureCache | None = None,
    ):
        """vocab_size: this id and all above it are never chosen, nor are those in `barred`. features: a cache of
        encoded pictures that is to outlive this engine; a new one if not given."""
        self.batch_size = batch_size
        self._model, self._eos_id, self._vocab = model, eos_id, range(vocab_size)
        self._bar = bar(barred, vocab_size)
        self._features = features or FeatureCache(model)
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        self._cache: KVCache | None = None
        self._next: NextTokens | None = None
        self._failure: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do or to raise."""
        return bool(self._waiting or self._rows or self._failure)

    @property
    def free(self) -> int:
        """How many more requests the next step could take."""
        return self.batch_size - len(self._rows) - len(self._waiting)

    def add(self, request: Request) -> Row:
        """Queue a request. It enters the batch, in order, as soon as there is a place for it.

        Raises InputError for pictures that are not of this model's size, or none.
        """
        side = self._model.config.vision.image_size
        if not request.pictures or any(picture.pixels.shape != (side, side, 3) for picture in request.pictures):
            shapes = [picture.pixels.shape for picture in request.pictures]
            raise InputError(f"pictures have shapes {shapes}, but this model reads one or more of [{side}, {side}, 3]")
        row = Row(request, len(self._vocab), self._eos_id)
        self._waiting.append(row)
        return row

    def restart(self, row: Row) -> None:
        """Queue a row of another engine, to be answered again from its beginning."""
        row.restart()
        self._waiting.append(row)

    def expect(self, requests: Sequence[Request]) -> None:
        """Begin to encode the pictures of requests that are added soon, behind the pass that is under way, and do not
        wait for them."""
        self._features.begin([picture for request in requests for picture in request.pictures])

    def step(self) -> list[Progress]:
        """One token for every running row, those included that enter with this step. Reports each row that got a
        token or finished.

        Raises what the model raises; the engine cannot be used after that. Tokens that were known before the failure
        are not lost: they are returned first, and the next step raises.
        """
        if self._failure is not None:
            raise self._failure
        progress: list[Progress] = []
        try:
            self._step(progress)
        except Exception as error:
            if not progress:
                raise
            self._failure = error
        return progress

    def _step(self, progress: list[Progress]) -> None:
        """Adds to `progress` as soon as something is known.

        On a GPU the next pass starts before Python reads the tokens of the last one, so that the GPU never waits for
        Python. A row that turns out to be finished has then read one token too many, which changes nothing. This is not
        possible where a row's guide or option against repetition needs to know the token. It is not done on the CPU,
        where nothing runs beside Python.

        That pass begins when the layers of the pass before it are done and the output head is still at work: MLX would
        copy keys and values that a pass under way still reads (cache.py), and beginning takes less time than the head.
        """
        self._drop_cancelled(progress)
        self._admit()
        if not self._rows:
            return
        following = self._next
        assert following is not None and self._cache is not None
        asks = asks_ahead(self._rows) if device.gpu_ops() else None
        failure: Exception | None = None
        if asks is not None:
            last_read = self._cache.last_read
            try:
                self._advance(following.tokens[:, None], [1] * len(self._rows), asks)
            except Exception as error:  # of the pass after; the tokens of the one before can still be read
                failure = error
            with timed("decode"):
                device.evaluate(*last_read)  # what it raises belongs to the pass before
            failure = failure or self._begin()
        with timed("decode"):
            read = following.read()
            if following.has_nan(read):
                raise no_numbers(self._model.dtype)
        now = time.perf_counter()
        for row, chosen in zip(self._rows, read, strict=True):
            ids = row.take(chosen)
            row.finished_at = now
            progress.append(Progress(row, ids))
        running = [index for index, row in enumerate(self._rows) if row.finish_reason is None]
        if failure is not None and running:
            raise failure
        self._keep(running)
        if running and asks is None:
            reads = [row.reads for row in self._rows]
            longest = max(map(len, reads))
            padded = [ids + [self._eos_id] * (longest - len(ids)) for ids in reads]
            self._advance(mx.array(padded), list(map(len, reads)), [row.asks for row in self._rows])
            if (failure := self._begin()) is not None:
                raise failure

    def _drop_cancelled(self, progress: list[Progress]) -> None:
        dropped = [row for row in (*self._waiting, *self._rows) if row.cancelled]
        for row in dropped:
            row.finish_reason, row.finished_at = "cancelled", time.perf_counter()
        if dropped:
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
            self._keep([index for index, row in enumerate(self._rows) if not row.cancelled])
        progress += [Progress(row, ()) for row in dropped]

    def _keep(self, running: list[int]) -> None:
        """Remove all rows but those at these indices."""
        if len(running) == len(self._rows):
            return
        self._rows = [self._rows[index] for index in running]
        if not running:
            self._cache = self._next = None
            return
        assert self._cache is not None and self._next is not None
        self._cache = self._cache.select(running)
        self._next = self._next.select(running)

    def _admit(self) -> None:
        """Let as many waiting requests enter as there are places, and read their prefixes."""
        newcomers = [self._waiting.popleft() for _ in range(min(self.batch_size - len(self._rows), len(self._waiting)))]
        if not newcomers:
            return
        start = time.perf_counter()
        pictures = [picture for row in newcomers for picture in row.request.pictures]
        with timed("vision"):
            features = iter(self._features.features(pictures))
        vision_s = time.perf_counter() - start
        pairs = []
        for row in newcomers:
            pairs.append((row, mx.concatenate([next(features) for _ in row.request.pictures])))
            row.vision_s = vision_s
            row.prompt_tokens = pairs[-1][1].shape[0] + len(row.request.prompt_ids)
        # Prefixes with equally many image tokens are read together. Sorted by length, they need less padding.
        pairs.sort(key=lambda pair: (pair[1].shape[0], pair[0].prompt_tokens))
        for _, group in groupby(pairs, lambda pair: pair[1].shape[0]):
            together = list(group)
            at_once = max(1, PREFILL_TOKENS // together[-1][0].prompt_tokens)
            for first in range(0, len(together), at_once):
                with timed("prefill"):
                    self._prefill(together[first : first + at_once])

    def _prefill(self, pairs: list[tuple[Row, mx.array]]) -> None:
        """Read the prefixes of rows with these image features [N, D], and let the rows enter."""
        start = time.perf_counter()
        rows = [row for row, _ in pairs]
        lengths = [len(row.request.prompt_ids) for row in rows]
        slots = max(lengths)
        ids = mx.array([[*row.request.prompt_ids, *[0] * (slots - len(row.request.prompt_ids))] for row in rows])
        features = mx.stack([features for _, features in pairs])
        allowed = [row.allowed() for row in rows]
        vocab = needed(allowed, self._vocab)
        logits, cache = self._model.prefill(
            features,
            ids,
            capacity=features.shape[1] + slots + min(ROOM, max(row.left for row in rows)),
            prefix_lengths=None if min(lengths) == slots else lengths,
            vocab=vocab,
        )
        chosen = self._choose(rows, logits, [[ids] for ids in allowed], vocab)
        mx.eval(chosen.arrays, cache.layers)
        if mx.isnan(logits).any().item():
            raise no_numbers(self._model.dtype)
        mx.clear_cache()  # its scratch memory is of no use to decoding
        if self._cache is not None and self._next is not None:
            cache, chosen = self._cache.join(cache), self._next.join(chosen)
        self._rows, self._cache, self._next = self._rows + rows, cache, chosen
        for row in rows:
            row.first_token_at = time.perf_counter()
            row.prefill_s = row.first_token_at - start

    def _advance(self, token_ids: mx.array, counts: list[int], asks: list[Asks]) -> None:
        """Let the running rows read token_ids int [B, T], of which each row's first `counts` are real, and choose what
        comes next. Nothing is computed yet: `_begin` does that."""
        assert self._cache is not None
        vocab = needed([allowed for several in asks for _, allowed in several], self._vocab)
        slots = token_ids.shape[1]
        if self._cache.length + slots > self._cache.capacity:
            more = max(slots, min(ROOM, max(row.left for row in self._rows)))
            self._cache = self._cache.grown(self._cache.length + more)
        real = None if min(counts) == slots else counts
        places = [(row, token) for row, several in enumerate(asks) for token, _ in several]
        after = places if len(places) > len(asks) else None
        order_only = not self._bars(vocab) and all(row.takes_largest for row in self._rows)
        logits, self._cache = self._model.extend(
            token_ids, self._cache, real, vocab=vocab, after=after, order_only=order_only
        )
        self._next = self._choose(self._rows, logits, [[allowed for _, allowed in several] for several in asks], vocab)

    def _begin(self) -> Exception | None:
        """Begin the pass that `_advance` has prepared, on a GPU: its layers apart from the output head, so that one can
        wait for them alone. Returns what it raises."""
        assert self._cache is not None and self._next is not None
        try:
            if device.gpu_ops():
                device.evaluate_soon(*self._cache.last_read, *self._cache.layers)
                device.evaluate_soon(*self._next.arrays)
        except Exception as error:
            return error
        return None

    def _choose(self, rows: list[Row], logits: mx.array, asked: list[list[Allowed]], vocab: Ids) -> NextTokens:
        wanted = [row.request.alternatives for row in rows if row.request.alternatives is not None]
        samplers = [row.sample for row in rows]
        histories = [row.histories for row in rows] if any(one.looks_back for one in samplers) else None
        if self._bar is not None and self._bars(vocab):
            logits = logits + self._bar
        return choose(samplers, logits, asked, vocab, max(wanted, default=None), histories)

    def _bars(self, vocab: Ids) -> bool:
        """Whether some of these ids are barred. A guide allows none that are."""
        return self._bar is not None and vocab == self._vocab


def engine_for(
    model: PaliGemma, processor: Processor, batch_size: int = 1, features: FeatureCache | None = None
) -> Engine:
    """An Engine for a model with this processor's tokenizer."""
    tokenizer = processor.tokenizer
    return Engine(
        model,
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
        barred=tokenizer.barred,
        batch_size=batch_size,
        features=features,
    )
