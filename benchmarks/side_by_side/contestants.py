"""One program in a process of its own, doing what `run` says. It is started in this repository's root by that
program's interpreter:

    python -m benchmarks.side_by_side.contestants NAME
        JSON commands on stdin, an answer a line on stdout
    python -m benchmarks.side_by_side.contestants NAME FOLDER IMAGE PROMPT
        one answer from process start, where NAME has no command of its own

All read the same pixels and ids from files. A contestant encodes pictures, reads prefixes up to the first token of
every row, and appends a token to every row; every call ends when its result is computed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

Json = dict[str, Any]


class PgMlx:
    packages = ("mlx", "numpy")

    def __init__(self) -> None:
        import pg_mlx

        import mlx.core as mx  # isort: skip - after pg_mlx, which looks for a BLAS

        self.mx, self.load_model = mx, pg_mlx.load_model

    def load(self, folder: str) -> None:
        self.model = self.load_model(folder)

    def inputs(self, pixels: Any, ids: Any) -> Any:
        mx, images = self.mx, self.model.config.vision.num_patches
        arrays = mx.contiguous(mx.array(pixels).transpose(0, 2, 3, 1)), mx.array(ids[:, images:])
        mx.eval(arrays)
        return arrays

    def encode(self, inputs: Any) -> None:
        self.mx.eval(self.model.encode_image(inputs[0]))

    def first(self, inputs: Any, room: int) -> list[int]:
        pixels, ids = inputs
        features = self.model.encode_image(pixels)
        capacity = features.shape[1] + ids.shape[1] + room
        logits, self.cache = self.model.prefill(features, ids, capacity=capacity)
        return self._take(logits)

    def step(self) -> list[int]:
        logits, self.cache = self.model.step(self.tokens, self.cache)
        return self._take(logits)

    def _take(self, logits: Any) -> Any:
        self.tokens = self.mx.argmax(logits, axis=-1)
        self.mx.eval(self.tokens, self.cache.layers)
        return self.tokens.tolist()


class PgMlxCopies(PgMlx):
    """As with --memory: float32 copies in place of packed weights, all of them."""

    def load(self, folder: str) -> None:
        self.model = self.load_model(folder, memory="1TB")


class MlxVlm:
    packages = ("mlx-vlm", "mlx")

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # the BLAS that pg_mlx finds, before MLX is imported
            ctypes.CDLL(os.environ.get("PG_MLX_BLAS", "libopenblas.so.0"), mode=ctypes.RTLD_GLOBAL)
        import mlx.core as mx

        self.mx = mx

    def load(self, folder: str) -> None:
        from mlx.utils import tree_flatten, tree_unflatten
        from mlx_vlm.utils import load_model

        mx = self.mx
        self.model = load_model(Path(folder), lazy=True, strict=True)
        packed = "quantization" in json.loads((Path(folder) / "config.json").read_text())
        arrays: list[Any] = list(tree_flatten(self.model.parameters()))
        while arrays:  # none is kept in both forms
            name, array = arrays.pop()
            if not packed and mx.default_device() == mx.cpu and mx.issubdtype(array.dtype, mx.floating):
                array = array.astype(mx.float32)
                self.model.update(tree_unflatten([(name, array)]))
            mx.eval(array)
        self.model.eval()

    def inputs(self, pixels: Any, ids: Any) -> Any:
        arrays = self.mx.array(pixels), self.mx.array(ids)
        self.mx.eval(arrays)
        return arrays

    def encode(self, inputs: Any) -> None:
        pixels = inputs[0].transpose(0, 2, 3, 1)
        hidden, _, _ = self.model.vision_tower(pixels, output_hidden_states=True)
        self.mx.eval(self.model.multi_modal_projector(hidden[None, :]))

    def first(self, inputs: Any, room: int) -> list[int]:
        from mlx_vlm.models.cache import make_prompt_cache

        pixels, ids = inputs
        self.cache = make_prompt_cache(self.model.language_model)
        return self._take(self.model(ids, pixels, self.mx.ones_like(ids), cache=self.cache).logits)

    def step(self) -> list[int]:
        return self._take(self.model.language_model(self.tokens[:, None], cache=self.cache).logits)

    def _take(self, logits: Any) -> Any:
        self.tokens = self.mx.argmax(logits[:, -1], axis=-1)
        self.mx.eval(self.tokens, [part.state for part in self.cache])
        return self.tokens.tolist()


class Transformers:
    packages = ("transformers", "torch")
    dtype = "float32"

    def __init__(self) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
        torch.set_grad_enabled(False)

    def load(self, folder: str) -> None:
        from transformers import PaliGemmaForConditionalGeneration

        dtype = getattr(self.torch, self.dtype)
        self.model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()

    def inputs(self, pixels: Any, ids: Any) -> Any:
        return self.torch.tensor(pixels).to(self.model.dtype), self.torch.tensor(ids).long()

    def encode(self, inputs: Any) -> None:
        self.model.get_image_features(inputs[0])

    def first(self, inputs: Any, room: int) -> list[int]:
        pixels, ids = inputs
        self.seen = self.torch.ones_like(ids)
        found = self.model(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=self.seen,
            token_type_ids=self.torch.zeros_like(ids),
            use_cache=True,
            logits_to_keep=1,
        )
        return self._take(found)

    def step(self) -> list[int]:
        self.seen = self.torch.nn.functional.pad(self.seen, (0, 1), value=1)
        found = self.model(
            input_ids=self.tokens[:, None], attention_mask=self.seen, past_key_values=self.cache, use_cache=True
        )
        return self._take(found)

    def _take(self, found: Any) -> list[int]:
        self.cache, self.tokens = found.past_key_values, found.logits[:, -1].argmax(dim=-1)
        tokens: list[int] = self.tokens.tolist()
        return tokens

    def answer(self, folder: str, image: str, prompt: str) -> str:
        """As its users write it."""
        from PIL import Image
        from transformers import AutoProcessor

        self.load(folder)
        processor = AutoProcessor.from_pretrained(folder)
        picture = Image.open(image).convert("RGB")
        inputs = processor(text=prompt, images=picture, return_tensors="pt")
        ids = self.model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        text: str = processor.decode(ids, skip_special_tokens=True)
        return text


class TransformersBfloat16(Transformers):
    dtype = "bfloat16"


CONTESTANTS: dict[str, Callable[[], Any]] = {
    "pg_mlx": PgMlx,
    "pg_mlx --memory": PgMlxCopies,
    "mlx-vlm": MlxVlm,
    "transformers float32": Transformers,
    "transformers bfloat16": TransformersBfloat16,
}


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory this process has had since `reset_peak`; since it started where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read(path: str) -> tuple[Any, Any]:
    import numpy as np

    with np.load(path) as arrays:
        return arrays["pixels"], arrays["ids"]


def run(contestant: Any, inputs: str, steps: int) -> Json:
    """One picture and prompt: seconds of each stage, the tokens."""
    arrays = contestant.inputs(*read(inputs))
    reset_peak()
    vision_s, _ = timed(contestant.encode, arrays)
    first_s, tokens = timed(contestant.first, arrays, steps)
    following = [timed(contestant.step) for _ in range(steps)]
    return {
        "vision_s": vision_s,
        "first_s": first_s,
        "decode_s": [taken for taken, _ in following],
        "tokens": [*tokens, *(row[0] for _, row in following)],
        "peak_bytes": peak_bytes(),
    }


def batch(contestant: Any, inputs: str, steps: int, at_once: int) -> Json:
    """Many pictures, at_once of them together: seconds of all, and each one's tokens."""
    pixels, ids = read(inputs)
    parts = [contestant.inputs(pixels[n : n + at_once], ids[n : n + at_once]) for n in range(0, len(ids), at_once)]
    start = time.perf_counter()
    answers: list[list[int]] = []
    for part in parts:
        columns = [contestant.first(part, steps), *(contestant.step() for _ in range(steps))]
        answers += [list(row) for row in zip(*columns, strict=True)]
    return {"seconds": time.perf_counter() - start, "tokens": answers}


JOBS: dict[str, Callable[..., Json]] = {"run": run, "batch": batch}


def serve(make: Callable[[], Any], commands: Any, answers: Any) -> None:
    """Nothing is imported before "load"."""
    contestant: Any = None
    for line in commands:
        command = json.loads(line)
        do = command.pop("do")
        try:
            if do == "load":
                contestant = make()
                result: Json = {"seconds": timed(contestant.load, command["folder"])[0]}
            elif do == "versions":
                result = {name: version(name) for name in make.packages}  # type: ignore[attr-defined]
            else:
                result = JOBS[do](contestant, **command)
        except Exception as error:  # a contestant that fails is a result, too
            result = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(result), file=answers, flush=True)


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    name, *question = sys.argv[1:]
    if question:
        print(CONTESTANTS[name]().answer(*question))
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print is no answer
    serve(CONTESTANTS[name], sys.stdin, answers)


if __name__ == "__main__":
    main()
