"""pg-mlx batch: rows are those of generate, whatever the source, and every end has its exit code."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from helpers.batches import PROMPT, as_generated, generated, left_over, rows

from pg_mlx.batch.job import BatchJob, JobFolder
from pg_mlx.cli import main
from pg_mlx.cli.progress import duration
from pg_mlx.errors import InputError

SHORT = ("--max-tokens", "4")


def batch(*arguments: str | Path) -> int:
    return main(["batch", *map(str, arguments)])


@pytest.fixture(scope="module")
def expected(pictures: Path) -> list[dict[str, Any]]:
    """What generate says of the sound pictures, each with two prompts."""
    return generated("--image", pictures, *PROMPT, "--prompt", "detect red circle ; blue square", *SHORT)


@pytest.fixture(scope="module")
def job(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole job about the folder."""
    job = tmp_path_factory.mktemp("jobs") / "job"
    done = batch(pictures, *PROMPT, "--prompt", "detect red circle ; blue square", *SHORT, "--to", job, "--shard", 4)
    assert done == 1  # two pictures are broken
    return job


def test_rows_are_those_of_generate(job: Path, expected: list[dict[str, Any]]) -> None:
    found = rows(job)
    assert [as_generated(row) for row in found if row["error"] is None] == expected
    assert [row["id"] for row in found[::2]] == [row["id"] for row in found[1::2]] == [f"{n:02}.png" for n in range(11)]
    broken = [row for row in found if row["error"] is not None]
    assert [row["id"] for row in broken] == ["03.png", "03.png", "08.png", "08.png"]
    assert all(row["image"] in row["error"] and row["text"] is None for row in broken)
    assert len({tuple(row) for row in found}) == 1, "all rows have the same keys"
    assert sorted(path.name for path in job.iterdir()) == [
        *("000000.jsonl", "000001.jsonl", "000002.jsonl", "job.json"),
    ]


def test_options_are_those_of_generate(sound: list[Path], tmp_path: Path) -> None:
    options = ("--temp", "0.7", "--seed", "3", "--top-k", "20", "--min-score", "0", "--constrain", "--max-regions", "1")
    prompt = ("--prompt", "detect red circle ; blue square")
    (tmp_path / "list.txt").write_text("\n".join(map(str, sound[:3])))
    assert batch(tmp_path / "list.txt", *prompt, *options, "--to", tmp_path / "job") == 0
    assert [as_generated(row) for row in rows(tmp_path / "job")] == generated("--image", *sound[:3], *prompt, *options)


def test_json_lines_keep_their_ids_and_prompts(sound: list[Path], tmp_path: Path) -> None:
    asked = [(5, "caption en"), ("b", "detect red circle"), (7, None)]
    lines = [{"id": id, "image": str(path), "prompt": prompt} for (id, prompt), path in zip(asked, sound, strict=False)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert batch(tmp_path / "list.jsonl", *SHORT, "--to", tmp_path / "job") == 1
    found = rows(tmp_path / "job")
    assert [(row["id"], row["prompt"]) for row in found] == asked
    assert [as_generated(row) for row in found[:2]] == [
        answer
        for answer in generated("--image", *sound[:2], *PROMPT, "--prompt", "detect red circle", *SHORT)
        if (answer["image"], answer["prompt"]) in ((str(sound[0]), "caption en"), (str(sound[1]), "detect red circle"))
    ]
    assert "no prompt" in found[2]["error"]


def test_a_tar(sound: list[Path], expected: list[dict[str, Any]], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for path in sound:
            archive.add(path, path.name)
            archive.addfile(tarfile.TarInfo(f"{path.stem}.txt"), io.BytesIO())
    assert batch(tmp_path / "data.tar", *PROMPT, *SHORT, "--to", tmp_path / "job", "--shard", 2) == 0
    found = rows(tmp_path / "job")
    assert [row["id"] for row in found] == [path.stem for path in sound]
    assert [row["text"] for row in found] == [row["text"] for row in expected[::2]]


# --- the same folder again -----------------------------------------------------------------------------


def test_a_whole_job_loads_no_model(
    job: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pg_mlx.batch.run.load_answerer", None)
    again = (pictures, *PROMPT, "--prompt", "detect red circle ; blue square", *SHORT, "--to", job, "--shard", 4)
    assert batch(*again) == 1
    assert "22 rows were there before" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        *(("--prompt", "ocr"), ("--max-tokens", "5"), ("--shard", "5"), ("--dtype", "bfloat16"), ("--seed", "1")),
        ("--format", "parquet"),
    ],
    ids=lambda change: change[0],
)
def test_another_job_is_refused(
    job: Path, pictures: Path, change: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    same = (pictures, *PROMPT, "--prompt", "detect red circle ; blue square", *SHORT, "--to", job, "--shard", "4")
    before = {path: path.read_bytes() for path in job.iterdir()}
    assert batch(*same, *change) == 2
    assert "holds another job" in capsys.readouterr().err.strip().splitlines()[-1]
    assert {path: path.read_bytes() for path in job.iterdir()} == before


def test_other_pictures_or_another_checkpoint_are_refused(
    job: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pictures, tmp_path / "copy")
    same = (*PROMPT, "--prompt", "detect red circle ; blue square", *SHORT, "--to", job, "--shard", "4")
    assert batch(tmp_path / "copy", *same) == 1  # the same pictures in another folder
    (tmp_path / "copy" / "new.png").write_bytes(b"")
    assert batch(tmp_path / "copy", *same) == 2
    from pg_mlx.demo import CHECKPOINT

    shutil.copytree(CHECKPOINT, tmp_path / "model")
    assert batch(pictures, *same, "--model", tmp_path / "model") == 1  # the same checkpoint in another folder
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(data)
    assert batch(pictures, *same, "--model", tmp_path / "model") == 2
    assert "another checkpoint" in capsys.readouterr().err


def test_retry_answers_shards_with_errors_again(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    arguments = (folder, *PROMPT, *SHORT, "--to", tmp_path / "job", "--shard", 4)
    assert batch(*arguments) == 1
    before = rows(tmp_path / "job")
    for name in ("03.png", "08.png"):
        shutil.copy(folder / "00.png", folder / name)
    assert batch(*arguments) == 1
    assert rows(tmp_path / "job") == before
    assert batch(*arguments, "--retry") == 0
    after = rows(tmp_path / "job")
    assert [row["id"] for row in after] == [row["id"] for row in before]
    assert after[3]["text"] == after[0]["text"] and not any(row["error"] for row in after)


# --- status and merge ----------------------------------------------------------------------------------


def test_status_and_merge(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("--status", job) == 0
    assert capsys.readouterr().out == "22 of 22 rows, 3 of 3 shards; 4 rows with an error\n"
    assert batch("--to", job, "--merge", tmp_path / "all.jsonl") == 0
    assert [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()] == rows(job)
    assert batch("--to", job, "--merge", tmp_path / "all.jsonl") == 2
    assert batch("--to", job, "--merge", job / "all.jsonl") == 2
    shutil.copytree(job, tmp_path / "copy")
    (tmp_path / "copy" / "000001.jsonl").unlink()
    assert batch("--status", tmp_path / "copy") == 1
    assert capsys.readouterr().out.startswith("14 of 22 rows, 2 of 3 shards")
    assert batch("--to", tmp_path / "copy", "--merge", tmp_path / "other.jsonl") == 1
    assert not (tmp_path / "other.jsonl").exists() and left_over(tmp_path) == ["copy"]


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("PICTURES",), "--to DIR"),
        (("--to", "JOB"), "no SOURCE"),
        (("PICTURES/none", "--to", "JOB"), "cannot read"),
        (("PICTURES/notes.md", "--to", "JOB"), "cannot read"),
        (("PICTURES", "--to", "JOB", "--part", "3/2"), "3/2"),
        (("PICTURES", "--to", "JOB", "--part", "0/2"), "0/2"),
        (("PICTURES", "--to", "JOB", "--max-tokens", "0"), "max_tokens"),
        (("PICTURES", "--to", "JOB", "--constrain", "--prompt", "ocr"), "detect"),
        (("PICTURES", "--to", "JOB", "--model", "none"), "none"),
        (("PICTURES", "--to", "JOB", "--address", "auto"), "--engine ray"),
        (("PICTURES", "--to", "PICTURES", "--prompt", "ocr"), "but no job"),
        (("--status", "PICTURES"), "holds no job"),
        (("--to", "PICTURES", "--merge", "all.jsonl"), "holds no job"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_input_is_one_line(
    pictures: Path, tmp_path: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(pictures.iterdir())
    job = tmp_path / "job"
    assert batch(*(part.replace("PICTURES", str(pictures)).replace("JOB", str(job)) for part in arguments)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("no --model")]
    assert words in line
    assert sorted(pictures.iterdir()) == before and not job.exists()


def test_an_empty_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("\n\n")
    assert batch(tmp_path / "list.txt", *PROMPT, "--to", tmp_path / "job") == 2
    assert "there are no pictures in" in capsys.readouterr().err


def test_a_list_that_changes_while_it_is_answered(sound: list[Path], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(map(str, sound[:4])))
    job = BatchJob((str(tmp_path / "list.txt"),), ("caption en",))
    place = JobFolder.begin(job, tmp_path / "job")
    (tmp_path / "list.txt").write_text(str(sound[0]))
    with pytest.raises(InputError, match="has changed since the job began"):
        list(place.entries(job, 0))


def test_a_damaged_job(tmp_path: Path) -> None:
    for text in ("", "{}", '{"pg_mlx_batch": 1}', '{"pg_mlx_batch": 1, "job": {}, "shards": [[1]]}'):
        (tmp_path / "job.json").write_text(text)
        assert batch("--status", tmp_path) == 2


def test_parts_are_all_shards_once() -> None:
    for count in range(12):
        for parts in range(1, 15):
            place = JobFolder(Path(), [None] * count, 1, None)  # type: ignore[list-item, arg-type]
            found = [number for part in range(1, parts + 1) for number in place.numbers(part, parts)]
            assert sorted(found) == list(range(count))


def test_durations() -> None:
    found = {45: "45 s", 600: "10 min", 7500: "2 h 05 min", 187_200: "2 d 4 h"}
    assert {seconds: duration(seconds) for seconds in found} == found
