"""Captions with Ray Data: parquet files with a column of pictures or paths in, the same rows with answers out.

python examples/ray_batch.py IN OUT [MODEL]

Start the nodes with `ray start ... --resources='{"mlx": 1}'`. docs/batch.md has the setup for Macs.
"""

import sys

import ray

from pg_mlx.batch import Predictor


def main(source: str, target: str, model: str | None = None) -> None:
    ray.init()  # the cluster of RAY_ADDRESS, or this machine
    actors = int(ray.cluster_resources().get("mlx", 0))
    if not actors:
        sys.exit("no node offers the resource mlx")
    answers = ray.data.read_parquet(source).map_batches(
        Predictor,
        fn_constructor_kwargs={"model": model, "prompt": "caption en"},
        batch_size=256,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=0,  # an actor that held a CPU could keep the tasks that read and write waiting for ever
        resources={"mlx": 1},
    )
    answers.write_parquet(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
