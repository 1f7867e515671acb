"""The results of side_by_side, as tables between two marks of a page, and as a plot beside it."""

from __future__ import annotations

import argparse
import math
from datetime import date
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.side_by_side.results import Result
from benchmarks.side_by_side.settings import SETTINGS
from pg_mlx.errors import InputError

BEGIN, END = "<!-- side_by_side.py writes from here -->", "<!-- to here -->"
COLOURS = {
    "pg_mlx": "#1f6f5c",
    "pg_mlx --memory": "#74b49b",
    "mlx-vlm": "#c8553d",
    "transformers float32": "#4a6fa5",
    "transformers bfloat16": "#93a8c9",
}


def write(page: Path, results: list[Result], machine: dict[str, Any], versions: str, args: argparse.Namespace) -> None:
    """Replace the text between the marks, and draw the plot. Raises InputError if the page has no marks."""
    between_marks(page, (BEGIN, END), body(results, machine, versions, args))
    pictures = page.parent / "pictures"
    pictures.mkdir(exist_ok=True)
    plot(results).save(pictures / "side_by_side.png", optimize=True)


def between_marks(page: Path, marks: tuple[str, str], body: str) -> None:
    """Replace the text between two marks of a page. Raises InputError if it lacks them."""
    begin, end = marks
    text = page.read_text()
    if begin not in text or end not in text:
        raise InputError(f"{page} lacks the marks {begin!r} and {end!r}")
    before, rest = text.split(begin, 1)
    page.write_text(f"{before}{begin}\n{body}\n{end}{rest.split(end, 1)[1]}")


def body(results: list[Result], machine: dict[str, Any], versions: str, args: argparse.Namespace) -> str:
    return "\n\n".join(
        [
            f"{date.today()}: {machine['chip']}, {machine['cpu_cores']} cores ({' '.join(machine['cpu_flags'])}), "
            f"{machine['memory_bytes'] / 1e9:.0f} GB, {machine['backend']}, {machine['system'].split()[0]}; "
            f"BLAS of both MLX programs: {machine['blas']}; {args.threads} threads each; {versions}. "
            f"Random models have {args.layers} layers of tower and decoder each.",
            stages(results),
            "![time relative to pg_mlx](pictures/side_by_side.png)",
            "**From process start**, and **batches**: 8 pictures of the demo, one after the other and at once.",
            demo(results),
            *failures(results),
        ]
    )


def stages(results: list[Result]) -> str:
    """One line for each result. In brackets: pg_mlx's time divided by this one."""
    lines = [
        "| setting | program | vision s | first token s | decode s/token | peak GB | tokens as pg_mlx's | runs |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for result in (one for one in results if one.runs):
        ours = reference(results, result)
        cells = [
            _beside(result.median(name), ours.median(name) if ours else None, scale)
            for name, scale in (("vision_s", 1), ("first_s", 1), ("decode_s", 1), ("peak_bytes", 1e9))
        ]
        same = _agreeing(result.runs[-1]["tokens"], ours.runs[-1]["tokens"]) if ours else ""
        title = _titles()[result.setting]
        lines.append(f"| {title} | {result.contestant} | {' | '.join(cells)} | {same} | {len(result.runs)} |")
    return "\n".join(lines)


def demo(results: list[Result]) -> str:
    lines = [
        "| setting | program | start to answer s | s/picture alone | in batches of 8 | gain | rows right |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for result in (one for one in results if one.starts or one.batches):
        ours = reference(results, result)
        start = _middle(result.starts)
        cells = [_beside(start, _middle(ours.starts) if ours else None, 1) if start else "fails"]
        if 1 in result.batches and 8 in result.batches:
            alone, together = result.batch_seconds(1), result.batch_seconds(8)
            pairs = zip(result.batches[8][-1]["tokens"], result.batches[1][-1]["tokens"], strict=True)
            right = sum(a == b for a, b in pairs)
            said = f"{right} of 8" if right == 8 else f"**{right} of 8**, the others are wrong"
            cells += [f"{alone:.3g}", f"{together:.3g}", f"{alone / together:.1f}x", said]
        else:
            cells += ["", "fails", "", ""]
        lines.append(f"| {_titles()[result.setting]} | {result.contestant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def failures(results: list[Result]) -> list[str]:
    return [
        f"{result.contestant} failed in {_titles()[result.setting]}: {result.error}"
        for result in results
        if result.error
    ]


def reference(results: list[Result], result: Result) -> Result | None:
    """pg_mlx in the same setting."""
    return next((r for r in results if r.setting == result.setting and r.contestant == "pg_mlx" and r.runs), None)


def _beside(value: float, ours: float | None, scale: float) -> str:
    said = f"{value / scale:.3g}"
    return said if ours is None or ours == value else f"{said} ({ours / value:.2f}x)"


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def _agreeing(tokens: list[int], ours: list[int]) -> str:
    same = next((n for n, (a, b) in enumerate(zip(tokens, ours, strict=True)) if a != b), len(ours))
    return f"{same} of {len(ours)}"


def _titles() -> dict[str, str]:
    return {name: setting.title for name, setting in SETTINGS.items()}


def plot(results: list[Result]) -> Image.Image:
    """Time to first token and time a token, as multiples of pg_mlx's, on a logarithmic axis."""
    groups: list[tuple[str, list[tuple[str, float]]]] = []
    for setting in dict.fromkeys(result.setting for result in results):
        of = [result for result in results if result.setting == setting and result.runs]
        ours = next((result for result in of if result.contestant == "pg_mlx"), None)
        if ours is None:
            continue
        for name, what in (("first_s", "first token"), ("decode_s", "decode")):
            bars = [(result.contestant, result.median(name) / ours.median(name)) for result in of]
            groups.append((f"{_titles()[setting]}: {what}", bars))
    every = [value for _, bars in groups for _, value in bars] or [1.0]
    low, high = math.floor(math.log10(min(*every, 0.5))), math.ceil(math.log10(max(*every, 2.0)))
    bar, gap, left, width, top = 14, 12, 250, 560, 46
    height = top + sum(len(bars) * bar + gap for _, bars in groups) + 20
    image = Image.new("RGB", (left + width + 70, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)

    def across(value: float) -> float:
        return left + width * (math.log10(value) - low) / (high - low)

    for power in range(low, high + 1):
        draw.line([(across(10**power), top - 6), (across(10**power), height - 16)], fill="#dddddd")
        draw.text((across(10**power), top - 8), f"{10.0**power:g}x", fill="#555555", font=font, anchor="ms")
    x = 10.0
    for name, colour in COLOURS.items():
        draw.rectangle([x, 8, x + 10, 18], fill=colour)
        draw.text((x + 15, 13), name, fill="black", font=font, anchor="lm")
        x += 35 + draw.textlength(name, font=font)
    y = float(top)
    for title, bars in groups:
        draw.text((left - 8, y + len(bars) * bar / 2), title, fill="black", font=font, anchor="rm")
        for name, value in bars:
            ends = sorted((across(1), across(value)))
            draw.rectangle([ends[0] - 1, y + 1, ends[1] + 1, y + bar - 2], fill=COLOURS[name])
            draw.text((ends[1] + 6, y + bar / 2 - 1), f"{value:.2g}", fill="#333333", font=font, anchor="lm")
            y += bar
        y += gap
    return image
