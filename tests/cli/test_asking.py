"""generate as a newcomer types it: several pictures after one flag, one question about all, a place, no prompt."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import ROOT
from helpers.service import alone, loaded
from PIL import Image

import pg_mlx
from pg_mlx.cli import main
from pg_mlx.cli.hints import chat_hint
from pg_mlx.cli.pictures import expand
from pg_mlx.demo import CHECKPOINT
from pg_mlx.generation import SamplingOptions

SCENE, CLUTTER = CHECKPOINT.parent / "scene.png", CHECKPOINT.parent / "clutter.png"
GREEDY = SamplingOptions()

pytestmark = pytest.mark.ops("cpu", reason="what the command reads and prints does not depend on the operations")


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    assert main(["generate", *map(str, arguments)]) == code
    shown = capsys.readouterr()
    return shown.out, shown.err


def on_a_terminal(arguments: list[str], typed: bytes = b"") -> tuple[int, str]:
    """What a person sees of `pg-mlx` with stdin, stdout and stderr on a terminal, and the exit code."""
    here, there = pty.openpty()
    command = [sys.executable, "-m", "pg_mlx", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=there, stdout=there, stderr=there) as process:
        os.close(there)
        if typed:
            os.write(here, typed)
        shown = b""
        while True:
            try:
                more = os.read(here, 1 << 16)
            except OSError:  # Linux: nobody holds the other end any more
                break
            if not more:
                break
            shown += more
    os.close(here)
    return process.returncode, shown.decode().replace("\r\n", "\n")


# --- pictures -----------------------------------------------------------------------------------------


def test_a_shells_pattern_is_several_pictures_after_one_flag(capsys: pytest.CaptureFixture[str]) -> None:
    one, _ = said(capsys, "--image", SCENE, CLUTTER, "--prompt", "ocr")
    other, _ = said(capsys, "-i", SCENE, "--prompt", "ocr", "-i", CLUTTER)
    assert one == other and len(one.splitlines()) == 2


def test_a_folder_has_pictures_only(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.mpg", "c.h5", "d.eps", "e.txt", "f.ps", "g.hdf", "h.npy", "i.svg", "j.mp4"):
        (tmp_path / name).touch()
    wanted = ["k.HIF", "l.jpg", "m.heic", "n.JPEG", "o.webp", "p.tiff", "q.avif"]
    for name in wanted:
        (tmp_path / name).touch()
    assert [Path(item.source).name for item in expand([str(tmp_path)])] == wanted


@pytest.mark.parametrize("prompt", ["ocr", "detect red circle"])
def test_together_is_one_question_about_all_pictures(capsys: pytest.CaptureFixture[str], prompt: str) -> None:
    expected = alone(prompt, (SCENE, CLUTTER), GREEDY)
    out, _ = said(capsys, "--image", SCENE, CLUTTER, "--together", "--prompt", prompt, "--format", "json")
    answer = json.loads(out)
    assert answer["text"] == expected.text and answer["stats"]["prompt_tokens"] == expected.stats.prompt_tokens
    assert answer["image"] == str(SCENE) and answer["images"] == [str(SCENE), str(CLUTTER)]
    assert [region["box"] for region in answer["regions"]] == [list(region.box) for region in expected.regions]


def test_together_has_one_answer_a_prompt_and_fails_as_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, _ = said(capsys, "--image", SCENE, CLUTTER, "--together", "--prompt", "ocr", "--prompt", "caption en")
    assert [line.partition(":")[0] for line in out.splitlines()] == ["ocr", "caption en"]
    (tmp_path / "a.png").write_bytes(SCENE.read_bytes())
    (tmp_path / "b.png").write_text("no picture")
    out, err = said(capsys, "--image", tmp_path, "--together", "--prompt", "ocr", code=2)
    assert out == "" and "b.png" in err.splitlines()[-1]


# --- a place ------------------------------------------------------------------------------------------


def test_a_region_is_put_behind_the_prompt_or_in_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    width, height = Image.open(SCENE).size
    box = (width / 4, 10, width / 2, height / 3)
    text = pg_mlx.format_region(box, (width, height))
    region = ",".join(map(str, box))
    for prompt, whole in (("caption", f"caption {text}"), ("answer {region} en x", f"answer {text} en x")):
        out, _ = said(capsys, "--image", SCENE, "--region", region, "--prompt", prompt)
        assert out == pg_mlx.generate(*loaded(), whole, SCENE).text + "\n"


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--region", "1,2,3"], "x0,y0,x1,y1"), (["--region", "a,b,c,d"], "x0,y0,x1,y1"),
        (["--region", "9,9,3,3"], "x0 <= x1"), (["--region", "nan,0,3,3"], "x0 <= x1"),
        (["--region", "0,0,9,9", "--constrain"], "--constrain"), (["--logprobs", "3"], "--format json"),
        (["--logprobs", "21", "--format", "json"], "from 0 to 20"), (["--stop", ""], "stop"),
        (["--repetition-penalty", "0"], "repetition_penalty"), (["--no-repeat-ngram-size", "-1"], "no_repeat_ngram"),
        (["--annotate", "out.svg"], ".svg"), (["--annotate", "out.webm"], ".webm"), (["--annotate", "o.heicx"], ".png"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    out, err = said(capsys, "--image", SCENE, "--prompt", "detect red circle", *flags, code=2)
    assert out == "" and words in err.splitlines()[-1]


def test_a_folder_to_draw_into_may_have_a_dot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "old.svg").mkdir()
    for name in ("old.svg", "new.svg/", "2024.06", "plain"):
        said(capsys, "--image", SCENE, "--prompt", "ocr", "--annotate", f"{tmp_path}/{name}")
        assert (tmp_path / name / "scene.png").exists()


def test_options_of_an_answer_are_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--stop", " star", "--stop", "never", "--repetition-penalty", "1.3", "--no-repeat-ngram-size", "3")
    out, _ = said(capsys, "--image", SCENE, "--prompt", "caption en", *flags, "--format", "json", "--logprobs", "2")
    options: dict[str, Any] = dict(stop=[" star", "never"], repetition_penalty=1.3, no_repeat_ngram_size=3)
    expected = pg_mlx.generate(*loaded(), "caption en", SCENE, logprobs=2, **options).to_json()
    answer = json.loads(out)
    assert (answer["text"], answer["logprobs"]) == (expected["text"], expected["logprobs"])
    plain, _ = said(capsys, "--image", SCENE, "--prompt", "ocr", "--format", "json", "--min-score", "0")
    assert "logprobs" not in json.loads(plain)


# --- prompts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [["--image", "scene.png"], ["--image", "-"]], ids=["a file", "stdin"])
def test_without_a_prompt_there_is_no_answer(more: list[str]) -> None:
    command = [sys.executable, str(ROOT / "generate.py"), *more]
    done = subprocess.run(command, cwd=SCENE.parent, input=b"", capture_output=True, check=False)
    assert done.returncode == 2 and done.stdout == b"" and done.stderr.count(b"\n") == 1
    assert b"no prompt was given" in done.stderr and b'--prompt ""' in done.stderr


def test_on_a_terminal_it_is_asked_for() -> None:
    code, shown = on_a_terminal(["generate", "--image", str(SCENE)], b"ocr\n")
    assert code == 0 and "prompt (such as" in shown and alone("ocr", (SCENE,), GREEDY).text in shown
    code, shown = on_a_terminal(["generate", "--image", str(SCENE)], b"\n")
    assert code == 2 and "no prompt was given" in shown


@pytest.mark.parametrize(
    ("prompt", "hinted"),
    [
        ("describe this image", True), ("describe the image in detail", True), ("detect the cat in the image", True),
        ("detect all objects", True), ("segment the dog", True), ("caption this", True), ("caption the photo", True),
        ("answer what colour is the car", True), ("ocr the text in this image", True), ("describe in detail", True),
        ("detect every car", True), ("detect cats in this photo", True), ("question what is it", True),
        ("caption", True), ("detect", True), ("answer", True),
        ("describe en", False), ("caption fr", False), ("detect cat", False), ("detect black cat ; dog", False),
        ("segment person in red", False), ("answer en what is the cat doing", False), ("caption zh-tw", False),
        ("detect traffic light", False), ("ocr", False), ("cap en", False), ("question en a cat", False),
        ("caption <loc0001><loc0001><loc0900><loc0900>", False), ("caption {region}", False),
    ],
)  # fmt: skip
def test_a_task_that_goes_on_as_chat_gets_a_hint(prompt: str, hinted: bool) -> None:
    assert (chat_hint(prompt) is not None) == hinted


# --- what a person sees -------------------------------------------------------------------------------


def test_on_a_terminal_boxes_are_labels_and_pixels() -> None:
    expected = alone("detect red circle ; blue star", (SCENE,), GREEDY)
    asked = ["generate", "-i", str(SCENE), "-p", "detect red circle ; blue star"]
    code, shown = on_a_terminal(asked)
    assert code == 0 and "<loc" not in shown and len(expected.regions) > 1
    for region in expected.regions:
        assert f"{region.label}: {' '.join(str(round(side)) for side in region.box)}\n" in shown
    _, raw = on_a_terminal([*asked, "--raw"])
    assert expected.text in raw


def test_masks_have_a_size_and_nothing_is_nothing() -> None:
    (region, *_) = alone("segment red circle", (SCENE,), GREEDY).regions
    _, shown = on_a_terminal(["generate", "-i", str(SCENE), "-p", "segment red circle"])
    assert region.mask is not None and f"(mask of {region.mask.sum()} pixels)" in shown
    assert on_a_terminal(["generate", "-i", str(SCENE), "-p", "caption en"])[1].count("<loc") == 0


def test_in_a_pipe_it_is_what_the_model_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "-i", SCENE, "-p", "detect red circle")
    assert out == alone("detect red circle", (SCENE,), GREEDY).text + "\n"


def test_a_run_into_a_file_shows_its_progress(tmp_path: Path) -> None:
    """stdout is a file, stderr a terminal."""
    here, there = pty.openpty()
    command = [sys.executable, "-m", "pg_mlx", "generate", "-i", *[str(SCENE)] * 12, "-p", "caption en"]
    with (tmp_path / "out").open("wb") as out, subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=there) as process:
        os.close(there)
        shown = b""
        try:
            while more := os.read(here, 1 << 16):
                shown += more
        except OSError:
            pass
    os.close(here)
    assert process.returncode == 0 and b" of 12, " in shown
    assert len((tmp_path / "out").read_text().splitlines()) == 12


# --- names of the commands ----------------------------------------------------------------------------


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pg-mlx {pg_mlx.__version__}\n"
    assert main(["help"]) == 0 and "generate" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["help", "generate"])
    assert end.value.code == 0 and "--image" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["generate", "convert"])
def test_the_commands_are_modules_and_the_functions_stay(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"pg_mlx.{module}", "--help"], capture_output=True, cwd=ROOT, check=True
    )
    assert f"python -m pg_mlx.{module}".encode() in done.stdout and done.stderr == b""
    with pytest.raises(ImportError, match="is a function"):
        __import__(f"pg_mlx.{module}")
    assert callable(getattr(pg_mlx, module))


def test_short_and_opposite_flags(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "-m", CHECKPOINT, "-i", SCENE, "-p", "ocr", "--verbose", "--no-verbose")
    assert out == alone("ocr", (SCENE,), GREEDY).text + "\n" and "layers" not in err


def test_load_and_generate_without_ceremony(capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = pg_mlx.load()
    generation = pg_mlx.generate(model, processor, "ocr", SCENE, verbose=True)
    assert generation.text == alone("ocr", (SCENE,), GREEDY).text
    assert generation.stats.summary() in capsys.readouterr().err


# --- streams that are closed or full ------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("form", ["text", "json", "jsonl"])
def test_a_full_disk_is_one_line(form: str) -> None:
    command = f"{sys.executable} generate.py -i {SCENE} -p ocr -m {CHECKPOINT} --format {form} > /dev/full"
    done = subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert done.returncode == 1 and len(errors) == 1 and "No space left" in errors[0]
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("command", ["generate.py -i SCENE -p ocr", "-m pg_mlx doctor"])
def test_a_closed_stdout_is_one_line(command: str) -> None:
    whole = f"{sys.executable} {command.replace('SCENE', str(SCENE))} >&-"
    done = subprocess.run(whole, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "stdout is closed" in done.stderr


def test_a_closed_stderr_or_stdin_is_no_matter() -> None:
    expected = alone("ocr", (SCENE,), GREEDY).text + "\n"
    for closing in ("2>&-", "<&-", "<&- 2>&-"):
        command = f"{sys.executable} generate.py -i {SCENE} -p ocr {closing}"
        done = subprocess.run(command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, expected), closing
