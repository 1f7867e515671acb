"""How much memory steps of training take, beside what `training.needs` computes from shapes.

    OMP_NUM_THREADS=1 python -m benchmarks.training_memory [--model demo|wide] [--type lora|full] [--vision]

"wide" has PaliGemma 2 3B's widths with 2 + 2 layers in float32, and takes 4 GB. Peaks are MLX's, with the weights.
"""

from __future__ import annotations

import pg_mlx  # noqa: F401  # isort: skip  (before mlx.core: it puts a fast BLAS first)

import argparse
import gc
import time
from dataclasses import replace

import mlx.core as mx
import numpy as np

from benchmarks.training_cases import Job, make_model
from pg_mlx import PaliGemma
from pg_mlx.memory.residency import held_bytes
from pg_mlx.training.adapting import LowRankOptions, adapt, count_learnt, train_all
from pg_mlx.training.batch import TrainingBatch
from pg_mlx.training.needs import Shape, training_needs
from pg_mlx.training.step import StepOptions, Trainer

JOBS = {
    "demo": [Job("demo", 2, 112, 35), Job("demo", 4, 112, 35), Job("demo", 8, 112, 35)],
    "wide": [Job("wide", 1, 304, 32), Job("wide", 1, 432, 32), Job("wide", 2, 304, 32), Job("wide", 1, 336, 64)],
}


def with_pixels(model: PaliGemma, batch: TrainingBatch) -> TrainingBatch:
    side = model.config.vision.image_size
    pixels = np.random.default_rng(1).uniform(-1, 1, (batch.rows, side, side, 3))
    return replace(batch, features=None, pixels=mx.array(pixels.astype(np.float32)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=JOBS, action="append")
    parser.add_argument("--type", choices=("lora", "full"), default="lora")
    parser.add_argument("--vision", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    print("| job | checkpoint | MB with weights | MB above weights | estimate, MB | ratio | CPU s a step |")
    print("|---|---|--:|--:|--:|--:|--:|", flush=True)
    for name in args.model or JOBS:
        model = make_model(name)
        weights = held_bytes(model)
        options = LowRankOptions(vision=args.vision, projector=args.vision)
        for job in JOBS[name]:
            batch = job.batch(model)
            for checkpoint in (False, True):
                adapter = None
                if args.type == "full":
                    train_all(model, args.vision, args.vision)
                    learnt = sum(array.size for array in Trainer(model).weights.values())
                else:
                    adapter, learnt = adapt(model, options), count_learnt(model.config, options)
                trainer = Trainer(model, StepOptions(checkpoint=checkpoint), adapter)
                given = with_pixels(model, batch) if args.vision else batch
                gc.collect()
                mx.clear_cache()
                mx.reset_peak_memory()
                times = []
                for step in range(args.steps):
                    begin = time.process_time()
                    trainer.step([given], step, 1e-4)
                    times.append(time.process_time() - begin)
                peak = mx.get_peak_memory()
                shape = Shape(job.rows, job.tokens, job.rows * job.suffix, job.rows if args.vision else 0)
                needs = training_needs(
                    model.config,
                    shape,
                    weights=weights,
                    learnt=learnt,
                    checkpoint=checkpoint,
                    full=args.type == "full",
                )
                print(
                    f"| {job} | {'yes' if checkpoint else 'no'} | {peak / 1e6:.0f} | {(peak - weights) / 1e6:.0f} "
                    f"| {needs.total / 1e6:.0f} ({(needs.total - weights) / 1e6:.0f} above) "
                    f"| {needs.total / peak:.2f} | {min(times):.2f} |",
                    flush=True,
                )
                if adapter is not None:
                    adapter.remove()
                del trainer, adapter


if __name__ == "__main__":
    main()
