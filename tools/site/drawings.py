"""The drawings of docs/paligemma.md: python -m tools.site.drawings. A test compares the files with what this makes.

The mask is that of the code (`pg_mlx.attention_mask`). Each drawing brings its own light ground, so that it can be
read on a dark page, too.
"""

from __future__ import annotations

import html
from pathlib import Path

import mlx.core as mx
import numpy as np

from pg_mlx.attention_mask import prefix_lm_mask

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
INK, PALE, GROUND = "#1d2433", "#5b6475", "#fbfbfd"
IMAGE, TEXT, MODEL, ANSWER = "#f6c667", "#8fc7a6", "#a9b8ef", "#f0a3a0"
FREE = "#e9ebf1"
IMAGE_TOKENS, TEXT_TOKENS, ANSWER_TOKENS = 4, 4, 3


class Drawing:
    """Shapes of an SVG, in the order in which they are drawn."""

    def __init__(self, width: int, height: int, title: str):
        self.size, self.shapes = (width, height), [f"<title>{html.escape(title)}</title>"]
        self.shapes.append(f'<rect width="{width}" height="{height}" rx="12" fill="{GROUND}"/>')

    def box(self, x: float, y: float, width: float, height: float, color: str, *lines: str) -> None:
        """A rounded box with lines of text in its middle; the first one is bold."""
        place = f'x="{x}" y="{y}" width="{width}" height="{height}"'
        self.shapes.append(f'<rect {place} rx="8" fill="{color}" stroke="{INK}" stroke-width="1"/>')
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + 18 * number, line, bold=number == 0, middle=True)

    def cell(self, x: float, y: float, side: float, color: str) -> None:
        """A square of a grid."""
        self.shapes.append(f'<rect x="{x}" y="{y}" width="{side - 2}" height="{side - 2}" rx="3" fill="{color}"/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        bold: bool = False,
        middle: bool = False,
        color: str = INK,
        size: int = 14,
    ) -> None:
        """A line of text; y is its base line."""
        weight = ' font-weight="600"' if bold else ""
        anchor = ' text-anchor="middle"' if middle else ""
        self.shapes.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}"{weight}{anchor}>{html.escape(words)}</text>'
        )

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through points, with a head at the last."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.6" marker-end="url(#head)"/>'
        )

    def __str__(self) -> str:
        width, height = self.size
        head = f'<path d="M0,0 L9,4.5 L0,9 z" fill="{INK}"/>'
        marker = f'<marker id="head" markerWidth="9" markerHeight="9" refX="8" refY="4.5" orient="auto">{head}</marker>'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
                ' font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif">',
                f"<defs>{marker}</defs>",
                *self.shapes,
                "</svg>\n",
            ]
        )


def data_flow() -> Drawing:
    """From a picture and a prompt to an answer."""
    d = Drawing(760, 560, "How a picture and a prompt become an answer")
    d.box(30, 30, 200, 64, IMAGE, "picture", "any size, any format")
    d.box(30, 134, 200, 64, "#ffffff", "pixels", "[B, H, W, 3], -1 to 1")
    d.box(30, 238, 200, 64, MODEL, "SigLIP", "N patches, width C")
    d.box(30, 342, 200, 64, MODEL, "connector", "one matrix: C to D")
    d.box(290, 134, 200, 64, TEXT, "prompt", "detect cat")
    d.box(290, 238, 200, 64, "#ffffff", "token ids", "<bos> detect cat \\n")
    d.box(290, 342, 200, 64, MODEL, "embedding", "times the root of D")
    d.box(30, 448, 460, 84, MODEL, "Gemma reads the prefix", "image tokens, then prompt tokens", "all see each other")
    d.box(550, 448, 180, 84, MODEL, "Gemma, step by step", "one token a step", "sees all before it")
    d.box(550, 342, 180, 64, "#ffffff", "logits", "257,152 numbers")
    d.box(550, 238, 180, 64, ANSWER, "next token", "the largest, or drawn")
    d.box(550, 134, 180, 64, ANSWER, "answer", "<loc0073> … cat")
    d.box(550, 30, 180, 64, ANSWER, "boxes and masks", "in the picture's pixels")
    for x in (130, 390):
        for top in (94, 198, 302, 406):
            if (x, top) != (390, 94):
                d.arrow((x, top), (x, top + (38 if top != 406 else 40)))
    d.arrow((490, 490), (548, 490))
    d.text(519, 480, "keys,", middle=True, size=12, color=PALE)
    d.text(519, 508, "values", middle=True, size=12, color=PALE)
    d.arrow((640, 448), (640, 408))
    d.arrow((640, 342), (640, 304))
    d.arrow((640, 238), (640, 200))
    d.arrow((640, 134), (640, 96))
    d.arrow((730, 270), (748, 270), (748, 490), (732, 490))
    return d


def prefix_mask() -> Drawing:
    """Which token may attend to which, as `prefix_lm_mask` says it."""
    names = [*(["image"] * IMAGE_TOKENS), "<bos>", "detect", "cat", "\\n", "<loc…>", "cat", "<eos>"]
    prefix, count, side, left, top = IMAGE_TOKENS + TEXT_TOKENS, len(names), 36, 96, 112
    mask = np.array(prefix_lm_mask(count, mx.array([prefix]), mx.array([count])))[0, 0]
    d = Drawing(760, 530, "Which token may attend to which")
    d.text(left, 32, "A token at the left may attend to a token at the top where the square has a colour.", size=14)
    colors = [*([IMAGE] * IMAGE_TOKENS), *([TEXT] * TEXT_TOKENS), *([ANSWER] * ANSWER_TOKENS)]
    for number, name in enumerate(names):
        middle = left + side * number + side / 2 - 1
        label = f'<text transform="translate({middle + 4},{top - 8}) rotate(-50)" font-size="13" fill="{INK}">'
        d.shapes.append(f"{label}{html.escape(name)}</text>")
        d.shapes.append(
            f'<text x="{left - 10}" y="{top + side * number + 22}" font-size="13" fill="{INK}" text-anchor="end">'
            f"{html.escape(name)}</text>"
        )
    for row in range(count):
        for column in range(count):
            color = colors[column] if mask[row, column] else FREE
            d.cell(left + side * column, top + side * row, side, color)
    edge = side * prefix
    for x0, y0, x1, y1 in (
        (left - 1 + edge, top - 4, left - 1 + edge, top + side * count),
        (left - 4, top - 1 + edge, left + side * count, top - 1 + edge),
    ):
        d.shapes.append(
            f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{INK}" stroke-width="1.6" stroke-dasharray="5 4"/>'
        )
    for number, (color, title, words) in enumerate(
        (
            (IMAGE, "image tokens", "256, 1024 or 4096"),
            (TEXT, "prompt", "read in both directions"),
            (ANSWER, "answer", "written left to right"),
        )
    ):
        y = top + 40 + 74 * number
        d.cell(530, y, 26, color)
        d.text(566, y + 11, title, bold=True)
        d.text(566, y + 30, words, color=PALE, size=13)
    d.text(530, top + 286, "prefix", bold=True)
    d.text(530, top + 304, "above and left of the dashes:", color=PALE, size=13)
    d.text(530, top + 322, "one piece: all see all", color=PALE, size=13)
    d.text(530, top + 356, "suffix", bold=True)
    d.text(530, top + 374, "below: each sees what was before", color=PALE, size=13)
    return d


DRAWINGS = {"paligemma.svg": data_flow, "prefix_mask.svg": prefix_mask}


def files() -> dict[Path, str]:
    """The text of each file, by its path."""
    return {FOLDER / name: str(draw()) for name, draw in DRAWINGS.items()}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(path.name)
