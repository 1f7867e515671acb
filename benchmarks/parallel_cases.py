"""(part of `parallel`) What rank 0 does: a model on several ranks beside the same model in one process."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.parallel_ranks import ROOT
from pg_mlx.checkpoint.load import LoadOptions, load_model
from pg_mlx.demo import CHECKPOINT
from pg_mlx.errors import InputError
from pg_mlx.generation import Engine, Picture, Request, SamplingOptions
from pg_mlx.paligemma import PaliGemma
from pg_mlx.parallel.leader import Leader
from pg_mlx.parallel.link import Link

GOLDEN = ROOT / "tests" / "golden"
STEPS = 24


def golden(family: str) -> tuple[Path, mx.array, mx.array, list[int]]:
    """A golden model's folder, the pixels and prompt of its first dump, and the greedy answer of the original code."""
    dump = mx.load(str(GOLDEN / f"{family}_batch1.safetensors"))
    assert isinstance(dump, dict)
    tokens = dump["greedy_tokens_no_sliding" if family == "pg2" else "greedy_tokens"]
    folder = GOLDEN / {"pg1": "pg1_classic", "pg2": "pg2_new"}[family]
    return folder, dump["pixel_values"].transpose(0, 2, 3, 1), dump["input_ids"][:, 16:], np.array(tokens)[0].tolist()


def answer(model: PaliGemma, pixels: mx.array, ids: mx.array) -> tuple[list[mx.array], list[int]]:
    """Logits [1, V] of a prefix and 24 greedy steps, and the chosen tokens."""
    features = model.encode_image(pixels)
    logits, cache = model.prefill(features, ids, capacity=features.shape[1] + ids.shape[1] + STEPS)
    every, tokens = [logits], [mx.argmax(logits, axis=-1)]
    for _ in range(STEPS):
        logits, cache = model.step(tokens[-1], cache)
        every.append(logits)
        tokens.append(mx.argmax(logits, axis=-1))
    mx.eval(every, tokens)
    return every, np.concatenate([np.array(token) for token in tokens]).tolist()


def loaded(link: Link, mode: str, shares: str, path: Path, **options: object) -> PaliGemma:
    """A model on all ranks. shares: "" for equal ones."""
    given = tuple(map(int, shares.split(":"))) if shares else None
    return Leader(link, mode, given).load_model(path, LoadOptions(dtype="float32", **options))  # type: ignore[arg-type]


def worst(ours: list[mx.array], theirs: list[mx.array]) -> float:
    """By how much logits differ at most."""
    return max(float(mx.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def demo_inputs(seed: int = 1) -> tuple[mx.array, mx.array]:
    """Pixels and prompt ids for the demo."""
    mx.random.seed(seed)
    return mx.random.uniform(-1, 1, (1, 112, 112, 3)), mx.array([[2, 410, 533, 108]])


# --- what rank 0 runs ----------------------------------------------------------------------------------


def pipeline_is_exact(link: Link, shares: str, *names: str) -> None:
    """Logits are those of one process bit by bit. names: goldens, with an adapter (pg2-adapter), the packed demo (demo,
    demo-adapter)."""
    for name in names:
        family, _, adapter = name.partition("-")
        with tempfile.TemporaryDirectory() as place:
            if family == "demo":
                path = str(demo_adapter(Path(place))) if adapter else None
                exact(link, shares, CHECKPOINT, *demo_inputs(), adapter_path=path, keep_quantized=True)
                continue
            folder, pixels, ids, tokens = golden(family)
            path = str(GOLDEN / f"{family}_lora_new") if adapter else None
            chosen = exact(link, shares, folder, pixels, ids, adapter_path=path)
            assert adapter or chosen[: len(tokens)] == tokens


def demo_adapter(folder: Path) -> Path:
    """Write a random adapter for two matrices of each layer of the demo, which are packed; returns its folder."""
    tensors, keys = {}, iter(mx.random.split(mx.random.key(5), 24))
    for layer in range(6):
        for name, outputs, columns in (("self_attn.q_proj", 192, 192), ("mlp.down_proj", 192, 576)):
            module = f"base_model.model.model.language_model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = mx.random.normal((4, columns), key=next(keys)) / 8
            tensors[f"{module}.lora_B.weight"] = mx.random.normal((outputs, 4), key=next(keys)) / 8
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), tensors)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    return folder


def exact(link: Link, shares: str, folder: Path, pixels: mx.array, ids: mx.array, **options: Any) -> list[int]:
    """The tokens of an answer whose logits all ranks together and one process compute alike."""
    theirs, chosen = answer(load_model(folder, dtype="float32", **options), pixels, ids)
    model = loaded(link, "pipeline", shares, folder, **options)
    before = link.messages
    ours, _ = answer(model, pixels, ids)
    for one, other in zip(ours, theirs, strict=True):
        assert mx.array_equal(one, other), (folder, shares, worst(ours, theirs))
    assert link.messages - before == 3 * (STEPS + 1)  # the command, to the next rank, back from the last one
    return chosen


def tensor_is_near(link: Link, shares: str, *names: str) -> None:
    """Logits are those of one process but for rounding, tokens are the original code's, and a pass takes two messages a
    layer and three more. names: goldens, or the packed demo."""
    for name in names:
        if name == "demo":
            theirs, chosen = answer(load_model(CHECKPOINT, dtype="float32", keep_quantized=True), *demo_inputs())
            near(link, shares, CHECKPOINT, *demo_inputs(), theirs, chosen, keep_quantized=True)
            continue
        folder, pixels, ids, tokens = golden(name)
        theirs, _ = answer(load_model(folder, dtype="float32"), pixels, ids)
        near(link, shares, folder, pixels, ids, theirs, tokens)


def near(
    link: Link,
    shares: str,
    folder: Path,
    pixels: mx.array,
    ids: mx.array,
    theirs: list[mx.array],
    tokens: list[int],
    **options: object,
) -> None:
    model = loaded(link, "tensor", shares, folder, **options)
    before = link.messages
    ours, chosen = answer(model, pixels, ids)
    off = worst(ours, theirs)
    assert off <= 1e-4 and chosen[: len(tokens)] == tokens, (folder, shares, off)
    assert link.messages - before == (STEPS + 1) * (2 * model.config.text.num_hidden_layers + 3)
    print(f"{folder.name} on {link.size} ranks, shares {shares or 'equal'}: off by {off:.1e}", flush=True)


def few_ids_need_no_message(link: Link) -> None:
    """Rank 0 computes the logits of a few ids alone; all ranks compute those of some tokens of a pass."""
    folder, pixels, ids, _ = golden("pg2")
    alone, model = load_model(folder, dtype="float32"), loaded(link, "tensor", "3:1", folder)
    layers = model.config.text.num_hidden_layers
    for vocab in ([3, 200, 17], range(5, 25), range(3, 280), None):
        results = []
        for one in (alone, model):
            features = one.encode_image(mx.concatenate([pixels, -pixels]))
            before = link.messages
            logits, cache = one.prefill(features, mx.repeat(ids, 2, axis=0), capacity=60, vocab=vocab)
            tokens = mx.array([[5, 6, 7], [8, 9, 0]])
            again, cache = one.extend(tokens, cache, [3, 2], vocab=vocab, after=[(0, 0), (0, 2), (1, 1)])
            last, cache = one.extend(tokens, cache.select([1, 0]), [1, 3], vocab=vocab)
            results.append([logits, again, last])
        assert worst(*results) <= 1e-4
        divided = vocab is None or 2 * len(vocab) > model.config.text.vocab_size
        assert link.messages - before == 3 * (2 * layers + 2 + divided) + 1


def order_law(link: Link, mode: str, schedules: str, shares: str = "") -> None:
    """Requests that enter and leave at random get the answers that they get alone from one process."""
    folder, _, _, _ = golden("pg2")
    alone, model = load_model(folder, dtype="float32"), loaded(link, mode, shares, folder)
    for seed in range(int(schedules)):
        random = np.random.default_rng(seed)
        requests = [request(random) for _ in range(int(random.integers(2, 6)))]
        expected = [run(alone, [one], random, 1)[0] for one in requests]
        found = run(model, requests, random, int(random.integers(1, 4)))
        assert found == expected, (seed, found, expected)


def request(random: np.random.Generator) -> Request:
    """A random picture, prompt and length."""
    picture = Picture(random.uniform(-1, 1, (56, 56, 3)).astype(np.float32))
    prompt = random.integers(3, 280, int(random.integers(1, 6))).tolist()
    return Request([picture], prompt, SamplingOptions(max_tokens=int(random.integers(1, 7))))


def run(model: PaliGemma, requests: list[Request], random: np.random.Generator, rows: int) -> list[list[int]]:
    """Answers of an engine to which requests come between its steps."""
    engine = Engine(model, eos_id=1, vocab_size=280, batch_size=rows)
    waiting, answers = list(requests), []
    for _ in itertools.count():
        while waiting and (not engine.busy or random.random() < 0.4):
            answers.append(engine.add(waiting.pop(0)))
        if not engine.busy and not waiting:
            return [row.token_ids for row in answers]
        engine.step()
    raise AssertionError


def endless(link: Link, mode: str) -> None:
    """Answer until the process is ended; says when the first step is done."""
    folder, pixels, ids, _ = golden("pg2")
    model = loaded(link, mode, "", folder)
    features = model.encode_image(pixels)
    for number in itertools.count():
        logits, cache = model.prefill(features, ids, capacity=1000)
        for _ in range(900):
            logits, cache = model.step(mx.argmax(logits, axis=-1), cache)
            mx.eval(logits)
            if number == 0:
                print("answering", flush=True)


def idle(link: Link, seconds: str) -> None:
    """Load, ask for nothing for some time, then step once."""
    folder, pixels, ids, _ = golden("pg2")
    model = loaded(link, "pipeline", "", folder)
    print("idle", flush=True)
    time.sleep(float(seconds))
    logits, _ = model.prefill(model.encode_image(pixels), ids, capacity=100)
    mx.eval(logits)


def refusal(link: Link, mode: str) -> None:
    """Print why nothing is loaded."""
    try:
        loaded(link, mode, "", golden("pg2")[0])
    except InputError as error:
        print(error)


def fastest_step(link: Link, mode: str) -> None:
    """Print the seconds of the fastest of 100 steps of the demo, which other work of the machine disturbs least, and
    the messages of a step."""
    model = loaded(link, mode, "2:1" if mode == "tensor" else "", CHECKPOINT)
    pixels, ids = demo_inputs()
    features = model.encode_image(pixels)
    logits, cache = model.prefill(features, ids, capacity=200)
    times, before = [], link.messages
    for _ in range(100):
        start = time.perf_counter()
        logits, cache = model.step(mx.argmax(logits, axis=-1), cache)
        mx.eval(logits)
        times.append(time.perf_counter() - start)
    print(json.dumps({"step_s": min(times), "messages": (link.messages - before) // 100}))
