"""The tricks that benchmarks/tricks.py takes out change the time of an answer, and nothing else."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import pg_mlx
from benchmarks import tricks
from pg_mlx.demo import CHECKPOINT
from pg_mlx.ops import device


@pytest.fixture(scope="module")
def bench() -> Iterator[tricks.Bench]:
    mx.random.seed(0)
    yield tricks.Bench(pg_mlx.load_model(CHECKPOINT, memory="1GB"))


@pytest.mark.parametrize("trick", tricks.TRICKS, ids=lambda trick: trick.name)
def test_the_plain_way_gives_the_same_logits(bench: tricks.Bench, trick: tricks.Trick) -> None:
    used = np.array(getattr(bench, trick.stage)())
    with trick.without(bench):
        plain = np.array(getattr(bench, trick.stage_without or trick.stage)())
    assert np.abs(used).max() > 0.1
    np.testing.assert_allclose(used, plain, atol=1e-4)


def test_the_plain_way_is_really_taken(bench: tricks.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its trick, a stage is another graph; afterwards it is the old one."""
    monkeypatch.setattr(device, "evaluate_soon", lambda *arrays: None)  # or only the last layer's is left to see
    for trick in tricks.TRICKS:
        if trick.stage_without:
            continue
        graphs = []
        for put_back in (False, True, False):
            with trick.without(bench) if put_back else tricks.no_memory(bench), monkeypatch.context() as patch:
                patch.setattr(tricks.Bench, "_done", lambda self, logits, cache: (logits, cache.layers))
                graphs.append(_operations(getattr(bench, trick.stage)()))
        assert graphs[0] == graphs[2] != graphs[1], trick.name


def _operations(outputs: Any) -> list[str]:
    text = io.StringIO()
    mx.export_to_dot(text, outputs)
    return re.findall(r'label ="(\w+)"', text.getvalue())


def test_predictions_are_shares(bench: tricks.Bench) -> None:
    for trick in tricks.TRICKS:
        assert trick.predicted is None or 0 < trick.predicted(bench) < 1


def test_the_table_goes_between_the_marks(
    bench: tricks.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(["before", *tricks.MARKS, "after"]))
    monkeypatch.setattr(tricks, "TRICKS", tricks.TRICKS[-1:])
    arguments = ["tricks.py", "--model", str(CHECKPOINT), "--rounds", "1", "--page", str(page)]
    monkeypatch.setattr("sys.argv", arguments)
    tricks.main()
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and tricks.TRICKS[0].name in lines[-3]
    page.write_text("nothing")
    with pytest.raises(SystemExit) as caught:
        tricks.main()
    assert caught.value.code == 2
    assert "lacks the marks" in capsys.readouterr().err
