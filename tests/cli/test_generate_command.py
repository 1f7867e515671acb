"""generate.py as a person runs it, in a process of its own: answers, ends, and how light it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import CAT, ROOT, ask
from PIL import Image


def test_text_goes_to_stdout_and_timings_to_stderr(model: Path):
    done = ask(model, CAT, "--prompt", "caption en")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n") and len(done.stdout) > 1
    for stage in ("load", "vision", "prefill", "first token", "peak"):
        assert stage in done.stderr
    assert "load" not in done.stdout


def test_json_is_one_object_and_equals_the_streamed_text(model: Path):
    streamed = ask(model, CAT, "--prompt", "caption en")
    done = ask(model, CAT, "--prompt", "caption en", "--format", "json")
    answer = json.loads(done.stdout)
    assert answer["text"] + "\n" == streamed.stdout
    assert answer["finish_reason"] in ("stop", "length")
    assert len(answer["token_ids"]) <= 4
    assert answer["stats"]["prompt_tokens"] > 16 and answer["stats"]["time_to_first_token_s"] > 0
    assert done.stdout.count("\n") == 1


def test_sampling_with_a_seed_is_repeatable_and_differs_from_greedy(model: Path):
    flags = ("--temp", "1.5", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01", "--format", "json")
    first, again, other = (ask(model, CAT, *flags, "--seed", seed) for seed in ("7", "7", "8"))
    ids = [json.loads(done.stdout)["token_ids"] for done in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]


def test_a_picture_from_stdin_and_a_prompt_from_stdin(model: Path):
    direct = ask(model, CAT, "--prompt", "ocr")
    assert ask(model, "-", "--prompt", "ocr", input=CAT.read_bytes()).stdout == direct.stdout
    for typed in (b"ocr", b"ocr\n", b"ocr\r\n", b"\xef\xbb\xbfocr\r\n"):
        assert ask(model, CAT, "--prompt", "-", input=typed).stdout == direct.stdout


@pytest.mark.parametrize("size", [(1, 1), (20000, 3), (3, 20000)])
def test_pictures_of_any_shape_work(model: Path, tmp_path: Path, size: tuple[int, int]):
    Image.new("RGB", size, "red").save(tmp_path / "odd.png")
    assert ask(model, tmp_path / "odd.png").returncode == 0


def test_an_empty_prompt_is_allowed(model: Path):
    assert ask(model, CAT, "--prompt", "").returncode == 0


@pytest.mark.parametrize(
    ("prompt", "hinted"),
    [
        ("What is in this picture?", True),
        ("please describe the cat", True),
        ("caption en", False),
        ("answer en where is the cat?", False),
        ("detect cat ; dog", False),
        ("", False),
    ],
)
def test_only_chat_gets_a_hint_and_the_prompt_stays_as_it_is(prompt: str, hinted: bool):
    from pg_mlx.cli.hints import chat_hint

    hint = chat_hint(prompt)
    assert (hint is not None) == hinted
    if hint:
        assert "detect" in hint and "\n" not in hint


def test_interrupting_ends_between_tokens_with_130_and_keeps_the_text(model: Path):
    command = [sys.executable, str(ROOT / "generate.py"), "--model", str(model), "--image", str(CAT), "--prompt", ""]
    process = subprocess.Popen(
        [*command, "--max-tokens", "8000", "--temp", "5", "--seed", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdout and process.stderr
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert first and rest.endswith(b"\n")
    assert b"Traceback" not in errors


def test_a_closed_stdout_is_one_line_and_no_traceback(model: Path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(ROOT / "generate.py"), "--model", str(model), "--image", str(CAT), "--prompt", ""]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    errors = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert "stdout was closed" in errors[-1] and not any("Traceback" in line for line in errors)


def _best_of(count: int, *arguments: str) -> float:
    """Seconds of a CPU: what others do on this machine does not count."""

    def once() -> float:
        start = os.times()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        end = os.times()
        return end.children_user + end.children_system - start.children_user - start.children_system

    return min(once() for _ in range(count))


def test_import_and_help_are_quick():
    """Limits of the project: 0.1 s for the import, 0.3 s for --help, beyond an empty Python."""
    empty = _best_of(5, "-c", "pass")
    package = _best_of(5, "-c", "import pg_mlx") - empty
    help_text = _best_of(5, "generate.py", "--help") - empty
    print(f"import pg_mlx {package:.3f} s, generate.py --help {help_text:.3f} s over an empty Python")
    assert package <= 0.1 and help_text <= 0.3


HEAVY = ("transformers", "mlx_lm", "torch", "tokenizers", "huggingface_hub", "tqdm", "requests")
"""And of our own what a plain answer has no use for."""

UNUSED = ("pg_mlx.conversion", "pg_mlx.files.npz", "pg_mlx.regions.draw", "pg_mlx.regions.export")


def test_the_greedy_path_imports_nothing_that_it_does_not_use(model: Path):
    code = (
        "import sys; from pg_mlx.cli import main; "
        f"main(['generate', '--model', {str(model)!r}, '--image', {str(CAT)!r}, '--max-tokens', '2']); "
        f"print([name for name in {HEAVY + UNUSED!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
