"""Experiments that need Metal; `bench` runs them on a Mac. This program was written without one.

Each answers one question by a small experiment in the shapes of the published models.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..memory.size import format_size
from ..ops import device
from ..paligemma import PaliGemma
from ..siglip import Stream
from .decode_work import decode_kernels
from .machine import dtype_name, matmul_rate, median_seconds

REPEATS = 5
MATRICES = 16
Matrices = list[tuple[mx.array, mx.array, mx.array]]


@dataclass(frozen=True)
class Sizes:
    """The shapes of the experiments."""

    prefixes: tuple[int, ...] = (276, 1044, 4116)
    """Tokens of a prefix at 224, 448 and 896 px."""
    matrix: tuple[int, int] = (32768, 2048)
    """Gate and up of the 3B model: outputs and columns."""
    vector_outputs: int = 18432
    """Outputs of a matrix that one vector is multiplied by."""
    head: tuple[int, int] = (8, 256)
    """Query heads that share one key head, and their width."""
    square: int = 4096
    """Side of a square product."""


@dataclass(frozen=True)
class Finding:
    """The answer that an experiment found, in words, and its figures for JSON."""

    question: str
    answer: str
    figures: dict[str, Any] = field(default_factory=dict)


def on_a_mac() -> bool:
    """Whether MLX's default device is the GPU of a Mac."""
    return sys.platform == "darwin" and device.is_gpu()


def ask(
    model: PaliGemma,
    pixels: mx.array,
    prompt_ids: Sequence[int],
    folder: str,
    note: Callable[[str], None],
    sizes: Sizes | None = None,
) -> list[Finding]:
    """Run all experiments. One that fails reports its error as its answer; the others still run.

    pixels [1, H, W, 3]. folder: of the checkpoint, for processes of their own. note: called with each question before
    it is tried.
    """
    sizes = sizes or Sizes()
    experiments: list[tuple[str, Callable[[], tuple[str, dict[str, Any]]]]] = [
        ("From how many tokens on is it faster to unpack a 4-bit matrix first?", lambda: unpacking(model.dtype, sizes)),
        ("Does float16 hold the activations?", lambda: maxima(model, pixels, prompt_ids)),
        ("What do larger command buffers bring, and what do they cost?", lambda: command_buffers(model, folder)),
        ("Is attention over a whole prefix faster or slower as one kernel?", lambda: forced_attention(model, sizes)),
        ("What does a width of 2304 cost 4-bit vectors?", lambda: odd_width(model.dtype, sizes)),
        ("How fast does it multiply, and in which 16 bits?", lambda: rates(sizes)),
    ]
    answers = []
    for question, experiment in experiments:
        note(question)
        try:
            answers.append(Finding(question, *experiment()))
        except Exception as error:  # whatever a backend raises is a finding
            answers.append(Finding(question, " ".join(f"It failed here: {type(error).__name__}: {error}".split())))
    return answers


def unpacking(dtype: mx.Dtype, sizes: Sizes) -> tuple[str, dict[str, Any]]:
    """Compares a packed product with unpacking and a float product, at the lengths of real prefixes."""
    outputs, columns = sizes.matrix
    packed = _packed(outputs, columns, dtype)
    figures: dict[str, Any] = {}
    words = []
    for tokens in sizes.prefixes:
        x = mx.random.normal((tokens, columns)).astype(dtype)
        mx.eval(x)
        as_stored = median_seconds(lambda x=x: mx.quantized_matmul(x, *packed), REPEATS)  # type: ignore[misc]
        unpacked = median_seconds(lambda x=x: x @ mx.dequantize(*packed).T, REPEATS)  # type: ignore[misc]
        figures[str(tokens)] = {"packed_s": as_stored, "unpacked_s": unpacked}
        words.append(f"at {tokens} tokens unpacking takes {unpacked / as_stored:.2f} of the packed product's time")
    first = next((n for n in sizes.prefixes if figures[str(n)]["unpacked_s"] < figures[str(n)]["packed_s"]), None)
    verdict = f"From {first} on." if first else f"Not up to {sizes.prefixes[-1]}."
    return f"{verdict} {_sentence(words)}", figures


def maxima(model: PaliGemma, pixels: mx.array, prompt_ids: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """The largest magnitude of the inputs and outputs of layers and MLP matrices, for a picture and a prompt."""
    found: dict[str, mx.array] = {}
    with _recorded(model, found):
        model.logits(model.encode_image(pixels), mx.array([list(prompt_ids)]))
        mx.eval(found)
    largest: dict[str, float] = {name: value.item() for name, value in found.items()}  # type: ignore[misc]
    name = max(largest, key=lambda name: largest[name])
    top = largest[name]
    limit = float(mx.finfo(mx.float16).max)
    verdict = "No" if top > limit else "Yes, for this picture"
    return f"{verdict}: the largest is {top:.0f}, in {name}, of {limit:.0f} possible.", {"largest": largest}


def command_buffers(model: PaliGemma, folder: str) -> tuple[str, dict[str, Any]]:
    """Decodes in processes with default and with raised limits, which MLX reads when it is imported; alternating,
    twice. Larger buffers hold what they read for longer, so the peak of memory belongs to the answer."""
    limits = {"MLX_MAX_OPS_PER_BUFFER": "200", "MLX_MAX_MB_PER_BUFFER": "400"}
    command = [sys.executable, "-m", "pg_mlx", "bench", "--model", folder, "--json", "--no-questions"]
    command += ["--dtype", dtype_name(model.dtype), "--rows", "1", "--repeats", "1", "--steps", "64"]
    times: dict[str, list[float]] = {"default": [], "raised": []}
    peaks = dict.fromkeys(times, 0)
    for _ in range(2):
        for name, extra in (("default", {}), ("raised", limits)):
            done = subprocess.run(command, env={**os.environ, **extra}, capture_output=True, check=True)
            found = json.loads(done.stdout)
            stages, peaks[name] = found["stages"], max(peaks[name], found["model"]["peak_memory_bytes"])
            times[name].append(next(stage["seconds"] for stage in stages if stage["stage"] == "decode"))
    default, raised = min(times["default"]), min(times["raised"])
    kernels = decode_kernels(model).total()
    more = peaks["raised"] - peaks["default"]
    said = (
        f"A step starts {kernels} kernels and takes {default * 1e3:.2f} ms, {raised * 1e3:.2f} ms with raised limits, "
        f"at a peak of {format_size(peaks['default'])} of memory, {more / 1e6:+.1f} MB with raised ones. This is no "
        "advice to raise them: a prefix then holds more scratch memory and is likelier to be ended by macOS, and a "
        "program that begins steps early copies keys and values in each (docs/decoding.md)."
    )
    return said, {"kernels": kernels, "limits": limits, "peak_bytes": peaks, **times}


def forced_attention(model: PaliGemma, sizes: Sizes) -> tuple[str, dict[str, Any]]:
    """Compares attention as MLX chooses it with one forced kernel: no mask, all heads share one key head, as in 3B."""
    heads, width = sizes.head
    tokens = sizes.prefixes[min(1, len(sizes.prefixes) - 1)]
    query = mx.random.normal((1, heads, tokens, width)).astype(model.dtype)
    key = mx.random.normal((1, 1, tokens, width)).astype(model.dtype)
    mx.eval(query, key)

    def attend(force: bool) -> mx.array:
        return mx.fast.scaled_dot_product_attention(query, key, key, scale=width**-0.5, force_fused=force)

    plain, forced = (median_seconds(lambda force=force: attend(force), REPEATS) for force in (False, True))  # type: ignore[misc]
    said = f"At {tokens} tokens of {heads} heads of {width} one kernel takes {forced / plain:.2f} of the usual time."
    return said, {"default_s": plain, "forced_s": forced}


def odd_width(dtype: mx.Dtype, sizes: Sizes) -> tuple[str, dict[str, Any]]:
    """Compares a vector times packed matrices of Gemma 2's width 2304 with widths that 512 divides. There are several
    matrices, so that neither waiting nor a cache of the chip hides the time of reading them."""
    figures = {}
    for columns in (2048, 2304, 2560):
        packed = [_packed(sizes.vector_outputs, columns, dtype) for _ in range(MATRICES)]
        x = mx.random.normal((1, columns)).astype(dtype)
        mx.eval(x)

        def multiply(x: mx.array = x, packed: Matrices = packed) -> list[mx.array]:
            return [mx.quantized_matmul(x, *one) for one in packed]

        stored = sum(array.nbytes for one in packed for array in one)
        figures[str(columns)] = stored / median_seconds(multiply, 4 * REPEATS)
    said = ", ".join(f"{speed / 1e9:.0f} GB/s at {columns}" for columns, speed in figures.items())
    return f"It reads {said}; padding to 2560 reads a ninth more.", {"bytes_per_second": figures}


def rates(sizes: Sizes) -> tuple[str, dict[str, Any]]:
    """Floating-point operations a second of square products in three dtypes."""
    found = {dtype_name(dtype): matmul_rate(dtype, sizes.square) for dtype in (mx.float16, mx.bfloat16, mx.float32)}
    said = ", ".join(f"{rate / 1e12:.2f} TFLOP/s in {name}" for name, rate in found.items())
    return f"{said}: float16 is {found['float16'] / found['bfloat16']:.2f} times as fast as bfloat16.", found


def _packed(outputs: int, columns: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
    weight, scales, biases = mx.quantize(mx.random.normal((outputs, columns)).astype(dtype))  # 4 bits, groups of 64
    mx.eval(weight, scales, biases)
    return weight, scales, biases


def _sentence(words: list[str]) -> str:
    said = "; ".join(words)
    return f"{said[0].upper()}{said[1:]}."


class _Recorder(nn.Module):
    """A module that records the largest magnitude of its inputs and outputs."""

    def __init__(self, module: nn.Module, name: str, found: dict[str, mx.array]):
        super().__init__()
        self.module = module
        self._name, self._found = name, found

    def __call__(self, x: mx.array, *others: Any) -> mx.array:
        y: mx.array = self.module(x, *others)
        self._note(x, y)
        return y

    def unbiased(self, x: mx.array) -> tuple[mx.array, mx.array | None]:
        """As Linear.unbiased; the output that is recorded has the bias."""
        y, bias = self.module.unbiased(x)
        self._note(x, y if bias is None else y + bias)
        return y, bias

    def forward(self, x: Stream) -> Stream:
        """As the method of a layer of the tower."""
        y: Stream = self.module.forward(x)
        self._note(x.hidden, y.hidden)
        return y

    def _note(self, x: mx.array, y: mx.array) -> None:
        for what, array in (("input", x), ("output", y)):
            self._found[f"{self._name} {what}"] = mx.abs(array).max().astype(mx.float32)


@contextmanager
def _recorded(model: PaliGemma, found: dict[str, mx.array]) -> Iterator[None]:
    """Within, every layer and the last matrix of every MLP report to `found`."""
    places: list[tuple[Any, Any, nn.Module]] = []
    towers = (("vision_tower", model.vision_tower, "fc2"), ("decoder", model.language_model, "down_proj"))
    for name, tower, last in towers:
        layers: list[Any] = tower.layers
        for index, layer in enumerate(layers):
            places.append((layer.mlp, last, layer.mlp[last]))
            layer.mlp[last] = _Recorder(layer.mlp[last], f"{name}.{index}.mlp.{last}", found)
            places.append((layers, index, layer))
            layers[index] = _Recorder(layer, f"{name}.{index}", found)
    try:
        yield
    finally:
        for owner, key, original in places:
            owner[key] = original
