"""What each trick of the model is worth: time with and without it, in turn, and what counting predicts.

    python -m benchmarks.tricks [--model FOLDER] [--rounds 5]

Without a folder: paligemma-3b-224 in float, its widths and its head, random weights, a few layers (--layers). A trick
is removed by putting the plain way in its place for one run. The table goes into
docs/performance.md.
Predictions are ratios of arithmetic (measure/work.py) where a prefix is read and of bytes where a token is; "-" is a
trick that saves kernels or intermediate results only, which a CPU hardly feels.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.side_by_side.page import between_marks
from pg_mlx import gemma, load_model, siglip
from pg_mlx.cache import KVCache
from pg_mlx.errors import InputError
from pg_mlx.measure import machine, work
from pg_mlx.ops import attention, gelu
from pg_mlx.ops.device import mx
from pg_mlx.paligemma import PaliGemma
from tools import random_checkpoint

ROOT = Path(__file__).parent.parent
MARKS = "<!-- tricks.py writes from here -->", "<!-- to here: tricks -->"
PROMPT_TOKENS = 12


@dataclass
class Bench:
    """A model with the inputs of one question."""

    model: PaliGemma

    def __post_init__(self) -> None:
        side, vocab = self.model.config.vision.image_size, self.model.config.text.vocab_size
        self.pixels = mx.random.uniform(-1, 1, (1, side, side, 3))
        self.ids = mx.random.randint(0, vocab, (1, PROMPT_TOKENS))
        self.features = self.model.encode_image(self.pixels)
        self.tokens = self.features.shape[1] + PROMPT_TOKENS
        _, self.cache = self.model.prefill(self.features, self.ids, capacity=self.tokens + 8)
        mx.eval(self.pixels, self.ids, self.features, self.cache.layers)

    def prefill(self, features: mx.array | None = None) -> mx.array:
        """Logits for the first token of an answer."""
        features = self.features if features is None else features
        return self._done(*self.model.prefill(features, self.ids, capacity=self.tokens + 8))

    def answer(self) -> mx.array:
        """The same about a new picture: vision, too."""
        return self.prefill(self.model.encode_image(self.pixels))

    def step(self) -> mx.array:
        return self._done(*self.model.step(self.ids[:, 0], self.cache))

    def _done(self, logits: mx.array, cache: KVCache) -> mx.array:
        mx.eval(logits, cache.layers)
        return logits


@dataclass(frozen=True)
class Trick:
    name: str
    stage: str
    """A method of Bench: what is timed with the trick."""
    without: Callable[[Bench], contextlib.AbstractContextManager[Any]]
    predicted: Callable[[Bench], float] | None = None
    """Time with the trick / time without it."""
    stage_without: str = ""
    """Timed without it, if that is another method."""


def whole_last_layer(bench: Bench) -> contextlib.AbstractContextManager[Any]:
    def prefill(self: gemma.Gemma, x: mx.array, capacity: int, lengths: Any = None) -> Any:
        layers = []
        for layer in self.layers:
            query, key, value = layer.self_attn.project(layer.pre_attention_norm(x), 0)
            x = layer.finish(x, layer.self_attn.attend(query, key, value, None)).hidden
            room = [(0, 0), (0, 0), (0, 0), (0, capacity - x.shape[1]), (0, 0)]
            layers.append(mx.pad(mx.stack([key, value]), room))
        return self.norm(x[:, -1:]), KVCache(tuple(layers), (x.shape[1],))

    return mock.patch.object(gemma.Gemma, "prefill", prefill)


def logits_of_all(bench: Bench) -> contextlib.AbstractContextManager[Any]:
    def prefill(features: mx.array, ids: mx.array, *, capacity: int) -> Any:
        return bench.model.logits(features, ids)[:, -1], bench.cache

    return mock.patch.object(bench.model, "prefill", prefill)


def separate_projections(bench: Bench) -> contextlib.AbstractContextManager[Any]:
    def attention(self: gemma.Attention, x: mx.array, offset: Any) -> Any:
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        ends = [sum(sizes[:n]) * self.head_dim for n in range(4)]
        parts = [self._heads(self.qkv_proj.outputs(a, b)(x)) for a, b in pairwise(ends)]
        return self._rotate(parts[0], offset), self._rotate(parts[1], offset), parts[2]

    def mlp(self: gemma.MLP, x: mx.array) -> mx.array:
        half = self.gate_up_proj.num_outputs // 2
        gate, up = self.gate_up_proj.outputs(0, half)(x), self.gate_up_proj.outputs(half, 2 * half)(x)
        return self.down_proj(gemma.geglu(gate, up))

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(gemma.Attention, "project", attention))
    stack.enter_context(mock.patch.object(gemma.MLP, "__call__", mlp))
    return stack


def repeated_keys(bench: Bench) -> contextlib.AbstractContextManager[Any]:
    attend = gemma.Attention.attend

    def repeated(self: gemma.Attention, query: mx.array, key: mx.array, value: mx.array, mask: Any) -> mx.array:
        group = self.heads // self.kv_heads
        return attend(self, query, mx.repeat(key, group, axis=1), mx.repeat(value, group, axis=1), mask)

    return mock.patch.object(gemma.Attention, "attend", repeated)


def plain_gelu(bench: Bench) -> contextlib.AbstractContextManager[Any]:
    """On a CPU this takes NumPy's exp away, too."""

    def gelu(x: mx.array, bias: mx.array | None = None) -> mx.array:
        x = x if bias is None else x + bias
        return 0.5 * x * (1 + mx.tanh((2 / mx.pi) ** 0.5 * (x + 0.044715 * x**3)))

    def geglu(gate: mx.array, up: mx.array) -> mx.array:
        return gelu(gate) * up

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(gemma, "geglu", geglu))
    stack.enter_context(mock.patch.object(siglip, "gelu", gelu))
    return stack


def functions_of_mlx(bench: Bench) -> contextlib.AbstractContextManager[Any]:
    stack = contextlib.ExitStack()
    for ops in (attention, gelu):
        stack.enter_context(mock.patch.object(ops, "LARGE_VALUES", math.inf))
    return stack


def written_mask(bench: Bench) -> contextlib.AbstractContextManager[Any]:
    attend = gemma.Attention.attend

    def masked(self: gemma.Attention, query: mx.array, key: mx.array, value: mx.array, mask: Any) -> mx.array:
        everything = mx.ones((1, 1, query.shape[2], key.shape[2]), dtype=mx.bool_)
        return attend(self, query, key, value, everything)

    return mock.patch.object(gemma.Attention, "attend", masked)


def folding_when_used(bench: Bench) -> contextlib.AbstractContextManager[Any]:
    norm = gemma.RMSNorm.__call__

    def folded(self: gemma.RMSNorm, x: mx.array, dtype: Any = None) -> mx.array:
        with mock.patch.object(self, "weight", (self.weight - 1) + 1):
            return norm(self, x, dtype)

    return mock.patch.object(gemma.RMSNorm, "__call__", folded)


def no_memory(bench: Bench) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def kept_features(bench: Bench) -> float:
    prefill = work.prefill_work(bench.model, bench.tokens).flops
    return prefill / (prefill + work.encode_work(bench.model).flops)


def last_layer(bench: Bench) -> float:
    model, last = bench.model, bench.model.language_model.layers[-1]
    text = model.config.text
    flops = work.prefill_work(model, bench.tokens).flops
    saved = work.cells(last) - 2 * text.num_key_value_heads * text.head_dim * text.hidden_size
    return flops / (flops + 2 * (bench.tokens - 1) * saved)


def one_row_of_logits(bench: Bench) -> float:
    """The plain way also runs the last layer for all."""
    flops = work.prefill_work(bench.model, bench.tokens).flops
    head = 2 * work.cells(bench.model.language_model.embed_tokens)
    return flops / (flops / last_layer(bench) + (PROMPT_TOKENS - 1) * head)


def shared_keys(bench: Bench) -> float:
    """Plainly, every repeated key and value is written and read once more."""
    text = bench.model.config.text
    once = work.decode_work(bench.model, [bench.tokens])
    group = text.num_attention_heads // text.num_key_value_heads
    return once.bytes / (once.bytes + 2 * group * work.cache_bytes(bench.model, [bench.tokens]))


TRICKS = (
    Trick("features of a picture kept for its next question", "prefill", no_memory, kept_features, "answer"),
    Trick("last layer: queries, output, MLP of one token", "prefill", whole_last_layer, last_layer),
    Trick("logits of one token, instead of the whole prompt's", "prefill", logits_of_all, one_row_of_logits),
    Trick("q, k, v in one product, gate and up in one", "prefill", separate_projections),
    Trick("GELU as written here, instead of in fourteen operations", "answer", plain_gelu),
    Trick("exp and tanh by NumPy, on a CPU", "answer", functions_of_mlx),
    Trick("no mask where all see all", "prefill", written_mask),
    Trick("keys and values not repeated for the heads", "step", repeated_keys, shared_keys),
    Trick("1 + w of norms added at load", "step", folding_when_used),
)


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(bench: Bench, trick: Trick, rounds: int) -> tuple[float, float]:
    """Median seconds with and without. The first round of each is not counted."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds + 1):
        for with_it in (True, False) if turn % 2 else (False, True):
            name = trick.stage if with_it else trick.stage_without or trick.stage
            with contextlib.nullcontext() if with_it else trick.without(bench):
                taken = timed(getattr(bench, name))
            if turn:
                seconds[with_it].append(taken)
    return statistics.median(seconds[True]), statistics.median(seconds[False])


def lines(bench: Bench, rounds: int) -> Iterator[str]:
    yield "| trick | stage | predicted | measured | s with | s without |"
    yield "|---|---|--:|--:|--:|--:|"
    for trick in TRICKS:
        print(trick.name, file=sys.stderr, flush=True)
        used, plain = measure(bench, trick, rounds)
        predicted = f"{trick.predicted(bench):.2f}" if trick.predicted else "-"
        yield f"| {trick.name} | {trick.stage} | {predicted} | {used / plain:.2f} | {used:.3f} | {plain:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", help="a folder; without it random weights")
    parser.add_argument("--layers", type=int, default=4, help="of the random model, tower and decoder (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: 5)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md", help="where the table goes")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = args.model
            if folder is None:
                raw = random_checkpoint.raw_config("paligemma-3b-224", args.layers, padded=False)
                random_checkpoint.write(Path(place, "model"), raw, None, random_checkpoint.PUBLISHED_TOKENIZER)
            model = load_model(folder or Path(place, "model"))
            found = machine.description()
            name = folder or f"3B at 224 px, {args.layers} layers of tower and decoder"
            table = "\n".join(lines(Bench(model), args.rounds))
            text = f"{date.today()}: {name}, {model.dtype}; {found['chip']}, {found['backend']}, {found['blas']}."
            between_marks(args.page, MARKS, f"{text}\n\n{table}")
    except InputError as error:
        parser.exit(2, f"tricks.py: error: {error}\n")


if __name__ == "__main__":
    main()
