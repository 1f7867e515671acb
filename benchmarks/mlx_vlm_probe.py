"""Reads checkpoint folders with mlx-vlm and transformers. Run by their interpreter, not by ours:

    python -m benchmarks.mlx_vlm_probe JOBS.json RESULTS.json

JOBS is a list of {"do": one of the functions in DO, and its arguments}. RESULTS has one object for each job, with only
"error" if it failed. benchmarks/compatibility.py and tests/benchmarks/test_mlx_vlm.py write JOBS and read RESULTS.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def versions() -> Result:
    return {name: version(name) for name in ("mlx-vlm", "mlx", "transformers")}


def mlx_vlm_run(folder: str, inputs: str, output: str, prompt: str, image: str, steps: int) -> Result:
    """Load strictly and answer a picture and a prompt; into `output` logits for given pixels and ids, as the folder
    runs and ("wide") with all its floats cast to float32."""
    import mlx.core as mx
    from mlx_vlm import load, stream_generate

    model, processor = load(folder, strict=True)
    arrays = mx.load(inputs)
    assert isinstance(arrays, dict)
    ids, pixels = arrays["input_ids"], arrays["pixel_values"]
    own = processor(text=prompt, images=image_of(image), return_tensors="np")
    answer = stream_generate(model, processor, prompt, image, temperature=0.0, max_tokens=steps)
    tokens = [int(part.token) for part in answer if part.token is not None]
    logits = model(ids, pixels, mx.ones_like(ids)).logits
    mx.eval(logits)
    model.set_dtype(mx.float32)
    wide = model(ids, pixels, mx.ones_like(ids)).logits
    mx.save_safetensors(output, {"logits": logits.astype(mx.float32), "wide": wide})
    return {
        "same_ids": mx.array(own["input_ids"]).tolist() == ids.tolist(),
        "pixel_difference": mx.abs(mx.array(own["pixel_values"]) - pixels).max().item(),
        "tokens": tokens,
    }


def mlx_vlm_kernels(folder: str, inputs: str) -> Result:
    """The kernels of one decode step, counted as graph.py does, and the views."""
    import mlx.core as mx
    from mlx_vlm import load
    from mlx_vlm.models.cache import make_prompt_cache

    from pg_mlx.measure import graph

    model, _ = load(folder, strict=True)
    arrays = mx.load(inputs)
    assert isinstance(arrays, dict)
    ids = arrays["input_ids"]
    cache = make_prompt_cache(model.language_model)
    mx.eval(model(ids, arrays["pixel_values"], mx.ones_like(ids), cache=cache).logits, [part.state for part in cache])
    token = mx.array([[5]])
    mx.eval(token)
    with graph.single_operations():
        logits = model.language_model(token, cache=cache).logits
        outputs = [logits, *(array for part in cache for array in part.state)]
        return {"kernels": graph.kernels(*outputs).total(), "views": graph.views(*outputs).total()}


def mlx_vlm_convert(source: str, target: str, options: Result) -> Result:
    from mlx_vlm.convert import convert

    convert(source, target, **options)
    return {}


def transformers_run(folder: str, inputs: str, output: str, prompt: str, image: str, weights: bool) -> Result:
    """Ids from the processor and, if `weights`, logits for given pixels and ids into `output`."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

    arrays = load_file(inputs)
    processor = AutoProcessor.from_pretrained(folder)
    own = processor(text=prompt, images=image_of(image), return_tensors="pt")
    result = {
        "same_ids": own["input_ids"].tolist() == arrays["input_ids"].tolist(),
        "pixel_difference": (own["pixel_values"] - arrays["pixel_values"]).abs().max().item(),
    }
    if weights:
        model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        ids = arrays["input_ids"].long()
        with torch.no_grad():
            outputs = model(
                input_ids=ids,
                pixel_values=arrays["pixel_values"],
                attention_mask=torch.ones_like(ids),
                token_type_ids=torch.zeros_like(ids),
            )
        save_file({"logits": outputs.logits.float().contiguous()}, output)
    return result


def transformers_save(source: str, target: str) -> Result:
    """Reads a checkpoint and writes it again with transformers: its newest names and files."""
    from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

    AutoProcessor.from_pretrained(source).save_pretrained(target)
    PaliGemmaForConditionalGeneration.from_pretrained(source, dtype="float32").save_pretrained(target)
    return {}


def image_of(path: str) -> Any:
    from PIL import Image

    return Image.open(path).convert("RGB")


DO: dict[str, Callable[..., Result]] = {
    job.__name__: job
    for job in (versions, mlx_vlm_run, mlx_vlm_kernels, mlx_vlm_convert, transformers_run, transformers_save)
}


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.suppress(OSError):  # MLX's Linux wheel has a slow BLAS; see pg_mlx/ops/blas.py
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    jobs, results = (Path(argument) for argument in sys.argv[1:])
    done = []
    for job in json.loads(jobs.read_text()):
        try:
            done.append(DO[job.pop("do")](**job))
        except Exception as error:  # whatever a peer raises is a finding, not a crash
            done.append({"error": f"{type(error).__name__}: {error}"})
    results.write_text(json.dumps(done))


if __name__ == "__main__":
    main()
