"""Compares free and constrained decoding of boxes and masks: what changes in the answers, and what is saved.

    python -m benchmarks.constrained --scenes 60                    # the demo checkpoint on its own test scenes
    python -m benchmarks.constrained FOLDER --scenes 60
    python -m benchmarks.constrained --random paligemma-3b-224 --layers 2 --q-bits 4 --scenes 10

A random checkpoint (of published shapes, cut to --layers) gives no sensible answers. So both ways are made to give the
right ones; all their logits are computed nonetheless. Each question is answered both ways, one after the other, each
way first in turn. A call is a pass through the decoder, that of the prefix included. Bytes of the head are those of its
outputs that are computed, counted three times if they are first copied together.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import pg_mlx
from demo.evaluate import Case, cases, labels, score
from pg_mlx.demo import CHECKPOINT
from pg_mlx.generation import Generation
from pg_mlx.linear import Ids
from pg_mlx.ops.device import mx
from pg_mlx.processor import Tokenizer
from pg_mlx.quantization import Quantization, padded_size
from tools import random_checkpoint

TASKS = ("detect", "segment")
WAYS = ("free", "constrained")


class Counted:
    """A model that counts its decoder's calls, and gives the dictated tokens if there are any."""

    def __init__(self, model: pg_mlx.PaliGemma):
        self.model = model
        self.heads: list[Ids | None] = []
        """For each call, the ids whose logits it has computed."""
        self.dictated: Sequence[int] = ()
        self._prefix = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def prefill(self, *inputs: Any, vocab: Ids | None = None, **options: Any) -> tuple[mx.array, Any]:
        logits, cache = self.model.prefill(*inputs, vocab=vocab, **options)
        self.heads.append(vocab)
        self._prefix = cache.length
        return self._dictate(logits, vocab, [0]), cache

    def extend(
        self,
        token_ids: mx.array,
        cache: Any,
        counts: Any = None,
        *,
        vocab: Ids | None = None,
        after: Any = None,
        **options: Any,
    ) -> tuple[mx.array, Any]:
        self.heads.append(vocab)
        places = [token for _, token in after or [(0, token_ids.shape[1] - 1)]]
        said = cache.length - self._prefix
        logits, cache = self.model.extend(token_ids, cache, counts, vocab=vocab, after=after, **options)
        return self._dictate(logits, vocab, [said + place + 1 for place in places]), cache

    def _dictate(self, logits: mx.array, vocab: Ids | None, places: list[int]) -> mx.array:
        """logits [N, n] of what stands at these places of the answer."""
        if not self.dictated:
            return logits
        ids = [self.dictated[min(place, len(self.dictated) - 1)] for place in places]
        columns = mx.array([token if vocab is None else bisect_left(vocab, token) for token in ids])
        return mx.where(mx.arange(logits.shape[-1]) == columns[:, None], 1e9, logits)

    def head_bytes(self) -> list[int]:
        """For each call."""
        table = self.model.language_model.embed_tokens
        row = sum(table[name].nbytes for name in ("weight", "scales", "biases") if name in table) // table.num_outputs
        return [
            row * (table.num_outputs if ids is None else len(ids) * (1 if isinstance(ids, range) else 3))
            for ids in self.heads
        ]


@dataclass
class Way:
    """What one way of decoding did for all questions of a task."""

    answers: list[Generation] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    head_bytes: list[float] = field(default_factory=list)
    """The mean of each question over its calls after the first."""
    seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)


def run(model: pg_mlx.PaliGemma, processor: pg_mlx.Processor, todo: Sequence[Case], dictate: bool) -> dict[str, Way]:
    ways = {way: Way() for way in WAYS}
    counted: Any = Counted(model)
    for number, case in enumerate(todo):
        for way in WAYS if number % 2 else WAYS[::-1]:
            counted.heads = []
            counted.dictated = processor.suffix_ids(case.question.answer) if dictate else ()
            start = time.perf_counter()
            answer = pg_mlx.generate(
                counted, processor, case.question.prompt, case.scene.image, constrain=way == "constrained"
            )
            done = ways[way]
            done.seconds.append(time.perf_counter() - start)
            done.answers.append(answer)
            done.calls.append(len(counted.heads))
            if len(counted.heads) > 1:
                done.head_bytes.append(sum(counted.head_bytes()[1:]) / (len(counted.heads) - 1))
            decoded = answer.stats.decode_tokens - 1
            done.decode_seconds.append(decoded / answer.stats.decode_tps if decoded else 0.0)
    return ways


def well_formed(case: Case, answer: Generation) -> bool:
    """As the grammar has it: nothing malformed, only labels of the prompt, ended by itself."""
    found = {region.label for region in answer.regions}
    return not answer.malformed and answer.finish_reason == "stop" and found <= set(labels(case.question))


def report(task: str, todo: Sequence[Case], ways: dict[str, Way], decoder: Any) -> Iterator[tuple[str, ...]]:
    """Lines: what, free, constrained, and how they compare."""
    free, constrained = (ways[way] for way in WAYS)
    malformed = [sum(len(answer.malformed) for answer in way.answers) for way in (free, constrained)]
    yield f"{task}: malformed records", *map(str, malformed), ""
    pairs = list(zip(todo, free.answers, constrained.answers, strict=True))
    comparable = [(one.token_ids, other.token_ids) for case, one, other in pairs if well_formed(case, one)]
    same = sum(one == other for one, other in comparable)
    yield f"{task}: well-formed answers", str(len(comparable)), str(len(pairs)), f"{same} token for token equal"
    for what, one, other, form in (
        ("calls an answer", free.calls, constrained.calls, "{:.2f}"),
        ("kB of the head a call", free.head_bytes, constrained.head_bytes, "{:.1f}"),
        ("seconds a picture", free.seconds, constrained.seconds, "{:.3f}"),
        ("of that decoding", free.decode_seconds, constrained.decode_seconds, "{:.3f}"),
    ):
        scale = 1e-3 if what.startswith("kB") else 1
        means = [scale * sum(values) / max(1, len(values)) for values in (one, other)]
        change = f"{means[1] / means[0] - 1:+.1%}" if means[0] else ""
        if what == "seconds a picture":
            change += f" (median {median(b / a for a, b in zip(one, other, strict=True)) - 1:+.1%})"
        yield f"{task}: {what}", *(form.format(mean) for mean in means), change
    scores = [
        score(
            [replace(case, text=answer.text) for case, answer in zip(todo, way.answers, strict=True)], decoder
        ).means()
        for way in (free, constrained)
    ]
    for name in scores[0]:
        yield name, *(f"{one[name]:.3f}" for one in scores), ""


@contextmanager
def folder_of(args: argparse.Namespace) -> Iterator[Path]:
    """The given checkpoint, or a random one that exists as long as it is needed."""
    if not args.random:
        yield args.folder
        return
    quantization = Quantization(args.q_bits, 64, "affine") if args.q_bits else None
    tiny = args.random.startswith("tiny-")
    tokenizer = random_checkpoint.SMALL_TOKENIZER if tiny else random_checkpoint.PUBLISHED_TOKENIZER
    rows = padded_size(Tokenizer.from_folder(tokenizer).vocab_size + 1, 64)
    raw = random_checkpoint.raw_config(args.random, args.layers, rows, padded=quantization is not None)
    with tempfile.TemporaryDirectory() as folder:
        random_checkpoint.write(Path(folder) / "model", raw, quantization, tokenizer)
        yield Path(folder) / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--random", metavar="NAME", help="instead of a folder: paligemma-3b-224, tiny-56 ...")
    parser.add_argument("--layers", type=int, default=2, help="of tower and decoder of the random one (default: 2)")
    parser.add_argument("--q-bits", type=int, help="pack the random one (default: bfloat16)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    args = parser.parse_args()

    with folder_of(args) as folder:
        model, processor = pg_mlx.load(folder, dtype=args.dtype)
        print(f"| {args.scenes} scenes | free | constrained | |\n|---|--:|--:|--:|")
        for task in args.tasks:
            todo = cases(args.scenes, (task,))
            run(model, processor, todo[:1], bool(args.random))  # once for nothing, to warm up
            ways = run(model, processor, todo, bool(args.random))
            for line in report(task, todo, ways, None if args.random else processor.mask_decoder):
                print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
