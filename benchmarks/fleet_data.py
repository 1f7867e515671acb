"""(part of `fleet_ray`) A pipeline of Ray Data with a Predictor, which goes on where it has ended.

    python -m benchmarks.fleet_data TABLES OUT CHECKPOINTS ADDRESS

TABLES: parquet files with a column `path`. OUT: parquet files with `path` and `text`. CHECKPOINTS: where Ray Data keeps
which rows are written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.fleet_jobs import PROMPT


def main(tables: str, out: str, checkpoints: str, address: str) -> None:
    import ray
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    from pg_mlx.batch import Predictor

    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.checkpoint_config = CheckpointConfig(
        id_column="path", checkpoint_path=checkpoints, delete_checkpoint_on_success=False
    )
    answers = ray.data.read_parquet(tables).map_batches(
        Predictor,
        fn_constructor_kwargs={"prompt": PROMPT},
        batch_size=10,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=0,
        resources={"mlx": 1},
    )
    answers.write_parquet(out)


def make_tables(scenes: Path, folder: Path, rows: int) -> Path:
    """Files that name the pictures of a folder, so many in each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    paths = sorted(map(str, scenes.iterdir()))
    for start in range(0, len(paths), rows):
        pq.write_table(pa.table({"path": paths[start : start + rows]}), folder / f"{start:05}.parquet")
    return folder


def texts(out: Path) -> list[tuple[str, str]]:
    """(path, text) of all rows that a pipeline has written."""
    import pyarrow.parquet as pq

    found = []
    for path in sorted(out.rglob("*.parquet")) if out.exists() else ():
        table = pq.read_table(path, columns=["path", "text"]).to_pydict()
        found += list(zip(table["path"], table["text"], strict=True))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
