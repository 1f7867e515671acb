"""A report as a page for people, in Markdown."""

from __future__ import annotations

from typing import Any

from .structs import AnsweredPart, MacReport


def page(report: MacReport) -> str:
    """The report in words. Every part says what was found and what it decides."""
    machine = report.machine
    lines = [
        "# What this machine says about pg_mlx",
        "",
        f"{machine['chip']}, {machine['memory_bytes'] / 1e9:.0f} GB, {machine['system']}; MLX {machine['mlx']} on "
        f"{machine['backend']}, pg_mlx {machine['pg_mlx']}, Python {machine['python']}, computing in "
        f"{machine['dtype']}. It took {report.seconds:.0f} s.",
        "",
    ]
    if not report.on_a_mac:
        lines += ["**No Apple GPU: the figures decide nothing about a Mac.** They show that the report works.", ""]
    if report.quick:
        lines += ["**A quick report**: few layers and few repetitions. Decide by a full one.", ""]
    lines += [f"- {name} is set to `{value}`" for name, value in report.settings.items()]
    lines += [""] if report.settings else []
    lines += [
        "Models have published shapes and random weights, unless an answer says otherwise. A ratio is a time "
        "divided by the time of the usual way, which took turns with it; in brackets the quartiles. All figures "
        "are in the JSON file beside this page. Neither holds names of this machine, its user or files.",
        "",
        "## In short",
        "",
        *_short(report),
        "",
    ]
    for part in report.parts:
        lines += [f"## {part.question}", "", _escaped(part.answer), "", f"*What it decides:* {part.decides}", ""]
        lines += [f"`{part.name}`, {part.status}, {part.seconds:.1f} s", ""]
    return "\n".join(lines)


def _short(report: MacReport) -> list[str]:
    lines = ["- Everything that was checked is right." if report.healthy else "- **Something is wrong.** See below."]
    figures = {part.name: part.figures for part in report.parts if part.status == "answered"}
    for family, number in (("gemma", 1), ("gemma2", 2)):
        found = figures.get(f"own_kernels_{family}")
        if found is not None:
            best = found.get("advice")
            what = f"set `PG_MLX_KERNELS={best}`" if best else "leave PG_MLX_KERNELS unset"
            lines.append(f"- PaliGemma {number}: {what}.")
    unpack = figures.get("unpack_rows", {}).get("4_bits")
    if unpack and report.on_a_mac:
        lines.append(f"- Set `PG_MLX_UNPACK_ROWS={unpack['from_rows'] or 0}` if that differs much from 512.")
    lines += _not_answered("failed", report.parts) + _not_answered("left out", report.parts)
    return lines


def _not_answered(status: str, parts: list[AnsweredPart]) -> list[str]:
    names = [f"`{part.name}`" for part in parts if part.status == status]
    return [f"- {status.capitalize()}: {', '.join(names)}."] if names else []


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return text.replace("<", "&lt;").replace("*", "\\*")


def tidy(value: Any) -> Any:
    """Figures as JSON has them: no infinity and no NaN, and six digits of a number."""
    if isinstance(value, dict):
        return {str(key): tidy(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [tidy(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    return value
