"""Every place where the program chooses between a GPU's operations and the CPU's is run both ways, by this test."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.models import model_of, pictures, quantized, random_ids, random_tensors, wide_config_json
from helpers.training import fresh, micro

import pg_mlx
from pg_mlx import InputError
from pg_mlx.checkpoint.load import load_model
from pg_mlx.checkpoint.open import open_checkpoint
from pg_mlx.conversion.peak import answering_peak
from pg_mlx.conversion.plan import make_plan
from pg_mlx.demo import CHECKPOINT
from pg_mlx.measure import decode_work
from pg_mlx.ops import blocks, device, metal_kernels, products
from pg_mlx.ops.gelu import gelu
from pg_mlx.training import memory
from pg_mlx.training.adapting import LowRankOptions, adapt
from pg_mlx.training.dataset import Lengths
from pg_mlx.training.settings import TrainSettings
from pg_mlx.training.step import Trainer

PACKAGE = Path(pg_mlx.__file__).parent
DECISIONS = ("gpu_ops", "backend")
"""The functions of `device` that say which operations compute. A caller of one has two ways."""

Place = tuple[str, int]
"""A file of the package, and a line."""


def places() -> Iterator[Place]:
    """All calls of DECISIONS in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                if name in DECISIONS:
                    yield str(path.relative_to(PACKAGE)), node.lineno


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> set[tuple[Place, bool]]:
    """Fills with the places that were run, and which way each one went."""
    seen: set[tuple[Place, bool]] = set()

    def noting(function):
        @functools.wraps(function)
        def call():
            frame = sys._getframe(1)
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                seen.add(((str(path.relative_to(PACKAGE)), frame.f_lineno), gpu_ops()))
            return function()

        return call

    gpu_ops = device.gpu_ops
    for name in DECISIONS:
        monkeypatch.setattr(device, name, noting(getattr(device, name)))
    return seen


def run_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model and its loaders do, small."""
    with suppress(InputError):  # float copies are refused with a GPU's operations
        load_model(CHECKPOINT, memory="1GB", dtype="float32")
    for dtype in (None, "float32", "bfloat16"):
        load_model(CHECKPOINT, max_memory="1GB", dtype=dtype)
    monkeypatch.setattr(products, "wanted_unpack_rows", lambda: 4)
    load_model(CHECKPOINT, max_memory="1GB", dtype="float32")
    model, processor = pg_mlx.load(CHECKPOINT, dtype="float32")
    images = [np.full((60, 80, 3), shade, np.uint8) for shade in range(0, 250, 50)]
    prompts = ["caption en", "detect red circle", "caption en", "detect red circle", "caption en"]
    pg_mlx.batch_generate(model, processor, prompts, images, batch_size=2, max_tokens=3)
    learning = fresh("pg1")
    mx.eval(Trainer(learning, adapter=adapt(learning, LowRankOptions(rank=1))).gradients(micro("pg1", 0)))

    plan = make_plan(open_checkpoint(CHECKPOINT), None)
    assert answering_peak(plan.modules, plan.config, 1 << 20, 2) > 1 << 20

    memory.choose(open_checkpoint(CHECKPOINT), TrainSettings("D"), [Lengths((3,), (2,))], 1, 1)

    mx.eval(gelu(mx.ones((2, 4)), mx.ones((4,))))
    with metal_kernels.use("capped"):
        assert metal_kernels.wanted("capped") == device.gpu_ops()

    for family in ("gemma", "gemma2"):
        raw, floats = wide_config_json(family), random_tensors(wide_config_json(family))
        for wide in (
            model_of(raw, floats),
            model_of(*quantized(raw, floats, lambda _, tensor: tensor.shape[1] % 64 == 0)[:2]),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(blocks, "VALUES", 64)  # long prefixes, in blocks
                logits, cache = wide.prefill(pictures(wide, 2), random_ids(2, 5), capacity=12)
                mx.eval(wide.step(mx.argmax(logits, axis=-1), cache)[0])


def test_every_choice_is_run_both_ways(visited: set[tuple[Place, bool]], monkeypatch: pytest.MonkeyPatch) -> None:
    for ops in ("cpu", "gpu"):
        with device.use(ops):
            run_all(monkeypatch)
    missing = [
        f"{path}:{line} never runs with {'a GPU' if gpu else 'the CPU'}'s operations"
        for path, line in places()
        for gpu in (False, True)
        if ((path, line), gpu) not in visited
    ]
    assert not missing, "run_all leaves out: " + "; ".join(missing)


def test_kernels_of_a_float_model_are_counted_as_on_a_gpu_at_real_width() -> None:
    """Products by NumPy would cut the graph: a 3B in float32 was counted with 2 kernels."""
    text = dict(num_hidden_layers=2, num_attention_heads=8, head_dim=256, vocab_size=2048, hidden_size=2048,
                intermediate_size=16384, num_key_value_heads=1)  # fmt: skip
    raw = wide_config_json("gemma")
    raw["text_config"] |= text
    raw["vision_config"]["image_size"] = 224
    tensors = random_tensors(raw)
    counts = {"float": decode_work.decode_kernels(model_of(raw, tensors)).total()}
    raw, tensors, _ = quantized(raw, tensors, lambda module, _: module.startswith("language_model"))
    counts["4 bits"] = decode_work.decode_kernels(model_of(raw, tensors)).total()
    print(counts)
    assert counts == {"float": 28, "4 bits": 31}


COMPILED_IN_A_THREAD = """
import threading
import pg_mlx
import mlx.core as mx
from pg_mlx.ops import device
from pg_mlx.ops.gelu import gelu

def use() -> None:
    with device.use("gpu"):
        mx.eval(gelu(mx.ones((4, 4))))

thread = threading.Thread(target=use)
thread.start()
thread.join()
"""


def test_a_thread_that_used_compiled_functions_does_not_abort_the_end_of_the_process() -> None:
    """MLX keeps compiled functions for each thread and frees them after Python has joined it. With one function for all
    threads 37 of 60 such programs ended in SIGABRT here."""
    codes = [subprocess.run([sys.executable, "-c", COMPILED_IN_A_THREAD], check=False).returncode for _ in range(12)]
    assert codes == [0] * 12
