"""The comparison with other programs: turns, budgets and what the page says. The others themselves are not needed."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import tiny_checkpoint
from helpers.models import one_line_error

from benchmarks.side_by_side import contestants
from benchmarks.side_by_side import page as side_by_side_page
from benchmarks.side_by_side import results as side_by_side_results
from benchmarks.side_by_side import run as side_by_side
from benchmarks.side_by_side.results import Result
from benchmarks.side_by_side.settings import SETTINGS, as_on_the_hub, check_tokenizer
from pg_mlx.errors import InputError

MACHINE = dict(chip="Some chip", cpu_cores=2, cpu_flags=["avx2"], memory_bytes=8e9, backend="CPU", system="Linux 6.1",
               blas="libopenblas.so.0")  # fmt: skip


class Fake:
    """A contestant whose runs take as long as it says."""

    def __init__(self, name: str, log: list[str], seconds: float, clock: list[float]):
        self.name, self._log, self._seconds, self._clock = name, log, seconds, clock

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self._log.append(self.name)
        self._clock[0] += self._seconds
        return {"first_s": self._seconds}


def test_they_take_turns_and_the_slow_sit_out(monkeypatch: pytest.MonkeyPatch) -> None:
    log, clock = list[str](), [0.0]
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: clock[0])
    fakes: list[Any] = [Fake(name, log, taken, clock) for name, taken in (("a", 1), ("b", 1), ("c", 9))]
    results = {fake: Result("demo", fake.name) for fake in fakes}
    side_by_side.take_turns("x", results, "inputs", argparse.Namespace(rounds=3, budget=8.0))
    assert log == ["a", "b", "c", "b", "a", "a", "b", "a", "b"]
    assert [len(result.runs) for result in results.values()] == [3, 3, 1]  # c's only run counts


def found(contestant: str, factor: float, tokens: list[int], right: int = 8) -> Result:
    run = {"vision_s": 0.1 * factor, "first_s": 0.5 * factor, "decode_s": [0.2 * factor, 0.1 * factor, 0.1 * factor]}
    alone = [[n, n] for n in range(8)]
    together = [[n, n] if n < right else [n, 0] for n in range(8)]
    batches = {1: [{"seconds": 8.0 * factor, "tokens": alone}], 8: [{"seconds": 2.0 * factor, "tokens": together}]}
    runs = [{**run, "tokens": tokens, "peak_bytes": 1e9 * factor}]
    return Result("demo", contestant, runs, batches, [2.0 * factor])


def test_the_page_says_who_is_faster_and_who_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{side_by_side_page.BEGIN}\nold\n{side_by_side_page.END}\nafter\n")
    failed = Result("demo", "transformers float32", error="ImportError: torch")
    results = [found("pg_mlx", 1, [5, 6, 7]), found("mlx-vlm", 4, [5, 6, 9], right=1), failed]
    side_by_side_page.write(page, results, MACHINE, "mlx 1.2", argparse.Namespace(threads=2, layers=4))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "Some chip, 2 cores (avx2), 8 GB, CPU, Linux; BLAS of both MLX programs: libopenblas.so.0; 2 threads" in text
    assert "| demo, float | pg_mlx | 0.1 | 0.5 | 0.1 | 1 | 3 of 3 | 1 |" in text
    assert "| demo, float | mlx-vlm | 0.4 (0.25x) | 2 (0.25x) | 0.4 (0.25x) | 4 (0.25x) | 2 of 3 | 1 |" in text
    assert "| demo, float | mlx-vlm | 8 (0.25x) | 4 | 1 | 4.0x | **1 of 8**, the others are wrong |" in text
    assert "transformers float32 failed in demo, float: ImportError: torch" in text
    assert (tmp_path / "pictures" / "side_by_side.png").stat().st_size > 1000
    page.write_text("no marks")
    with one_line_error("lacks the marks"):
        side_by_side_page.write(page, results, MACHINE, "", argparse.Namespace(threads=2, layers=4))


def test_figures_are_kept_for_another_run(tmp_path: Path) -> None:
    kept, about = tmp_path / "figures.json", {"machine": "this one"}
    assert side_by_side_results.kept(kept, about) == {}
    results = {"demo": [found("pg_mlx", 1, [5, 6]), Result("demo", "mlx-vlm", error="slow")]}
    side_by_side_results.keep(kept, about, results)
    assert side_by_side_results.kept(kept, about) == results
    with one_line_error("another machine"):
        side_by_side_results.kept(kept, {"machine": "that one"})


def test_the_docs_have_the_marks() -> None:
    text = (side_by_side.ROOT / "docs" / "performance.md").read_text()
    assert text.index(side_by_side_page.BEGIN) < text.index(side_by_side_page.END)


def test_pg_mlx_answers_commands(tmp_path: Path) -> None:
    """A row of a batch has the tokens of its own run; a wrong command is an answer, too."""
    folder = tiny_checkpoint(tmp_path / "tiny")
    as_on_the_hub(folder)
    one, many = side_by_side.write_inputs(folder, tmp_path, "caption en")
    with np.load(many) as arrays:
        assert arrays["pixels"].shape == (8, 3, 56, 56)
        assert len({row.tobytes() for row in arrays["pixels"]}) == 8
    commands = [
        {"do": "versions"},
        {"do": "load", "folder": str(folder)},
        {"do": "run", "inputs": str(one), "steps": 3},
        {"do": "batch", "inputs": str(many), "steps": 3, "at_once": 8},
        {"do": "batch", "inputs": str(many), "steps": 3, "at_once": 1},
        {"do": "dance"},
    ]
    answers = io.StringIO()
    contestants.serve(contestants.PgMlx, io.StringIO("\n".join(map(json.dumps, commands))), answers)
    versions, load, run, together, alone, dance = map(json.loads, answers.getvalue().splitlines())
    assert versions["mlx"] and load["seconds"] > 0 and dance == {"error": "KeyError: 'dance'"}
    assert len(run["decode_s"]) == 3 and run["peak_bytes"] > 1e6 and run["first_s"] > 0
    assert together["tokens"] == alone["tokens"] and alone["tokens"][0] == run["tokens"]


def test_a_missing_vocabulary_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with one_line_error("PG_MLX_TOKENIZER"):
        check_tokenizer(list(SETTINGS), tmp_path)
    with one_line_error("--settings demo-8bit demo only"):
        check_tokenizer(["3b-224"], tmp_path)
    check_tokenizer(["demo", "demo-8bit"], tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    check_tokenizer(list(SETTINGS), tmp_path)


def test_it_is_said_at_once_at_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("begun")

    def missing(names: Any) -> None:
        raise InputError("no vocabulary")

    monkeypatch.setattr(side_by_side, "versions", never)
    monkeypatch.setattr(side_by_side, "check_tokenizer", missing)
    monkeypatch.setattr(side_by_side.sys, "argv", ["side_by_side", "--settings", "3b-224"])
    with pytest.raises(SystemExit) as end:
        side_by_side.main()
    assert end.value.code == 2 and capsys.readouterr().err == "side_by_side: error: no vocabulary\n"
