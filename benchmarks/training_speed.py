"""CPU seconds of a training step, ours and that of transformers + PEFT (torch, eager attention), in turns.

    OMP_NUM_THREADS=1 python -m benchmarks.training_speed --torch OTHER/bin/python [--model demo|wide] [--steps 4]

OTHER: a Python with torch, transformers 5 and peft. Both train LoRA of rank 8 on the decoder's seven matrices with
AdamW, on rows of the same lengths. Each is a process of its own that makes a step when it is asked to, so that other
work on the machine slows both. Ours has the features of the frozen tower given, as in training; torch encodes anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

JOBS = {"demo": (8, 112, 35), "wide": (1, 304, 32)}
"""Rows, tokens of a row with its image tokens, and suffix tokens of a row."""

TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def ours(name: str) -> Callable[[], object]:
    from benchmarks.training_cases import Job, make_model
    from pg_mlx.training.adapting import LowRankOptions, adapt
    from pg_mlx.training.step import Trainer

    model = make_model(name)
    batch = Job(name, *JOBS[name]).batch(model)
    trainer = Trainer(model, adapter=adapt(model, LowRankOptions()))
    return lambda: trainer.step([batch], 0, 1e-4).loss


def theirs(name: str) -> Callable[[], object]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    config = json.loads(os.environ["PG_MLX_BENCHMARK_CONFIG"])
    if name == "demo":
        options = {"attn_implementation": "eager", "dtype": torch.float32}
        model = PaliGemmaForConditionalGeneration.from_pretrained(config["folder"], **options)
    else:
        wide = config["wide"]
        width = wide["text_config"]["hidden_size"]
        wide["vision_config"]["projection_dim"] = width
        made = PaliGemmaConfig(**wide, projection_dim=width, image_token_index=257152, attn_implementation="eager")
        model = PaliGemmaForConditionalGeneration(made)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS))
    vision = model.config.vision_config
    images, side = (vision.image_size // vision.patch_size) ** 2, vision.image_size
    rows, tokens, suffix = JOBS[name]
    prefix = tokens - images - suffix + 1
    text = torch.randint(3, 1000, (rows, prefix + suffix))
    placeholders = torch.full((rows, images), model.config.image_token_id)
    ids = torch.cat([placeholders, text], 1)[:, :tokens]
    kinds = (torch.arange(tokens) >= images + prefix).long().expand(rows, -1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": kinds,
        "labels": torch.where(kinds == 1, ids, -100),
        "pixel_values": torch.rand(rows, 3, side, side) * 2 - 1,
    }
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def write_demo(folder: Path) -> None:
    """The demo in float32, as transformers loads it."""
    import mlx.core as mx

    from pg_mlx import load_model
    from pg_mlx.checkpoint.disassemble import stored_weights
    from pg_mlx.checkpoint.layouts import PATCH_KERNEL
    from pg_mlx.demo import CHECKPOINT

    weights = dict(stored_weights(load_model(CHECKPOINT, dtype="float32")))
    weights[PATCH_KERNEL] = weights[PATCH_KERNEL].transpose(0, 3, 1, 2)
    config = json.loads((CHECKPOINT / "config.json").read_text())
    kept = {key: value for key, value in config.items() if not key.startswith("quantization")}
    (folder / "config.json").write_text(json.dumps(kept))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})


def serve(side: str, name: str) -> None:
    """Make a step for each line on stdin, and print its CPU seconds."""
    step = ours(name) if side == "ours" else theirs(name)
    for _ in sys.stdin:
        begin = time.process_time()
        step()
        print(time.process_time() - begin, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--torch", required=True)
    parser.add_argument("--model", choices=JOBS, default="demo")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(args.torch, args.model, args.steps, Path(folder))


def compare(torch: str, model: str, steps: int, folder: Path) -> None:
    """Print the figures of both; folder: for a checkpoint that both read."""
    from benchmarks.training_cases import WIDE

    if model == "demo":
        write_demo(folder)
    config = json.dumps({"folder": str(folder), "wide": WIDE})
    children = {
        side: subprocess.Popen(
            [python, *how, f"--serve={side}", f"--model={model}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PG_MLX_BENCHMARK_CONFIG": config},
        )
        for side, python, how in (
            ("ours", sys.executable, ["-m", "benchmarks.training_speed"]),
            ("theirs", torch, [__file__]),
        )
    }
    times: dict[str, list[float]] = {side: [] for side in children}
    for step in range(steps + 1):
        for side, child in children.items():
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write("step\n")
            child.stdin.flush()
            seconds = float(child.stdout.readline())
            if step:  # the first one also sets things up
                times[side].append(seconds)
    for child in children.values():
        child.communicate()
    best = {side: min(seconds) for side, seconds in times.items()}
    print(f"{model}: ours {best['ours']:.2f} CPU s a step, transformers + PEFT {best['theirs']:.2f}, ", end="")
    print(f"ratio {best['ours'] / best['theirs']:.2f} (least of {steps})")


if __name__ == "__main__":
    if any(argument.startswith("--serve=") for argument in sys.argv):
        serve(*(argument.partition("=")[2] for argument in sys.argv[1:3]))
    else:
        main()
