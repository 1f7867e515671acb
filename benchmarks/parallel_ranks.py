"""(part of `parallel`) Several processes as mlx.launch starts them: ranks of one group, on 127.0.0.1."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent

PROGRAM = """
import sys
import pg_mlx
from pg_mlx.parallel.follower import Follower
from pg_mlx.parallel.link import join
{before}

link = join(float(sys.argv[1]))
if link.rank:
    {follower}(link).run()
else:
    from {module} import {function}
    try:
        {function}(link, *sys.argv[2:])
    finally:
        link.stop()
"""
"""What each rank runs: rank 0 a function of a module, the others what it asks for."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Ranks:
    """Running processes, by rank. They end with the block. commands: one for all ranks, or one for each; folders
    likewise, in which they run."""

    def __init__(
        self, commands: Sequence[Sequence[str]], size: int = 2, folders: Sequence[Path] = (ROOT,), **environment: str
    ):
        self._folder = tempfile.TemporaryDirectory()
        hosts = Path(self._folder.name) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
        shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MLX_HOSTFILE": str(hosts)}
        self.processes = [
            subprocess.Popen(
                commands[rank % len(commands)],
                env={**shared, **environment, "MLX_RANK": str(rank)},
                cwd=folders[rank % len(folders)],
                stdin=subprocess.DEVNULL if rank else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self._folder.cleanup()

    def finish(self, ranks: Iterable[int] | None = None) -> list[subprocess.CompletedProcess[str]]:
        """What each of these ranks (None: all) printed, and its exit code."""
        done = []
        for process in self.processes if ranks is None else [self.processes[rank] for rank in ranks]:
            out, error = process.communicate(timeout=300)
            error = "".join(line for line in error.splitlines(True) if "no fast BLAS" not in line)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, error))
        return done


def leading(
    module: str, function: str, *arguments: str, silence: float = 120, before: str = "", follower: str = "Follower"
) -> list[str]:
    """The command of ranks of which the first one runs a function of a module with its link. before: code that runs
    first. follower: what the others are."""
    program = PROGRAM.format(module=module, function=function, before=before, follower=follower)
    return [sys.executable, "-c", program, str(silence), *arguments]


def lead(size: int, module: str, function: str, *arguments: str, ops: str = "cpu", **more: str) -> None:
    """Run such ranks with some operations. more: as `leading`. Asserts that all of them succeed, and that the followers
    say nothing."""
    with Ranks([leading(module, function, *arguments, **more)], size, PG_MLX_OPS=ops) as ranks:  # type: ignore[arg-type]
        done = ranks.finish()
    assert [one.returncode for one in done] == [0] * size, [one.stderr for one in done]
    assert all(one.stdout == one.stderr == "" for one in done[1:]), done[1:]


def run(size: int, *arguments: str, folders: Sequence[Path] = (ROOT,)) -> list[subprocess.CompletedProcess[str]]:
    """Run a command of pg_mlx on all ranks."""
    with Ranks([command(*arguments)], size, folders) as ranks:
        return ranks.finish()


def command(*arguments: str) -> list[str]:
    """A command of pg_mlx."""
    return [sys.executable, "-m", "pg_mlx", *arguments]


def run_alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of pg_mlx in one process, with as many threads as a rank has."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command(*arguments), cwd=ROOT, env=one_thread, capture_output=True, text=True, check=False)
