"""Two processes learn as one does: mx.distributed's ring on 127.0.0.1."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
from helpers.paths import ROOT
from helpers.training import joined, micro, relative

PROGRAM = """
import sys
import pg_mlx
import mlx.core as mx
from helpers.training import fresh, joined, micro
from pg_mlx.training.adapting import LowRankOptions, adapt
from pg_mlx.training.step import MicroBatch, StepOptions, Trainer

group = mx.distributed.init(backend="ring", strict=True) if len(sys.argv) > 2 else None
rank = group.rank() if group else None
model = fresh("pg2")
adapter = adapt(model, LowRankOptions(rank=4, dropout=0.2))
trainer = Trainer(model, StepOptions(), adapter, group)
rows = [[0, 1, 2, 3, 4, 5]] if rank is None else [[0, 1], [2, 3, 4, 5]][rank : rank + 1]
whole = joined(micro("pg2", 0), micro("pg2", 1))
losses = []
for number in range(3):
    mine = [MicroBatch(whole.select(some), tuple(some)) for some in rows]
    if rank == 0 and number == 2:
        mine = []  # a process may have nothing left
    if rank == 1 and number == 2:
        mine = [MicroBatch(whole, (0, 1, 2, 3, 4, 5))]
    result = trainer.step(mine, number, 1e-2)
    losses.append((result.loss, result.count, result.gradient_norm))
mx.save_safetensors(sys.argv[1], {**trainer.weights, "losses": mx.array(losses)})
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_two_processes_are_one(tmp_path: Path) -> None:
    (tmp_path / "hosts.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    paths = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}

    def start(name: str, **more: str) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-c", PROGRAM, str(tmp_path / f"{name}.safetensors"), *(["ring"] if more else [])]
        return subprocess.Popen(arguments, env=paths | more)

    hosts = {"MLX_HOSTFILE": str(tmp_path / "hosts.json")}
    running = [start("0", MLX_RANK="0", **hosts), start("1", MLX_RANK="1", **hosts), start("alone")]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    alone, first, second = (mx.load(str(tmp_path / f"{name}.safetensors")) for name in ("alone", "0", "1"))
    assert all(mx.array_equal(array, second[name]).item() for name, array in first.items())
    assert alone["losses"][0, 1].item() == joined(micro("pg2", 0), micro("pg2", 1)).suffix_tokens
    assert relative(first, alone)[0] <= 1e-5
