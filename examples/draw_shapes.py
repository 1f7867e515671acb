"""Draws training data for the tutorial: python examples/draw_shapes.py FOLDER [PICTURES]

Pictures of one to four coloured shapes, and the question which of them is the largest: three files of JSONL lines, as
Roboflow exports them. The bundled demo model knows such shapes, but not this question (docs/training.md).
"""

import json
import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

COLORS = {
    "red": (214, 39, 40),
    "green": (44, 150, 50),
    "blue": (38, 80, 210),
    "yellow": (245, 215, 40),
    "purple": (140, 50, 170),
    "orange": (250, 130, 20),
}
SIDE = 224


def outline(shape: str, radius: float) -> list[tuple[float, float]]:
    """Corners around the middle."""
    up = -math.pi / 2
    if shape == "circle":
        polar = [(2 * math.pi * k / 48, 1.0) for k in range(48)]
    elif shape == "square":
        polar = [(math.pi / 4 + math.pi / 2 * k, 1.25) for k in range(4)]
    elif shape == "triangle":
        polar = [(up + 2 * math.pi * k / 3, 1.25) for k in range(3)]
    elif shape == "star":
        polar = [(up + math.pi * k / 5, 0.5 if k % 2 else 1.25) for k in range(10)]
    else:  # a cross
        arm, reach = 0.36, 1.15
        corners = [(arm, reach), (arm, arm), (reach, arm), (reach, -arm), (arm, -arm), (arm, -reach)]
        corners += [(-x, -y) for x, y in corners]
        return [(x * radius, y * radius) for x, y in corners]
    return [(radius * r * math.cos(angle), radius * r * math.sin(angle)) for angle, r in polar]


def draw(rng: random.Random) -> tuple[Image.Image, str]:
    """A picture, and the name of its largest shape: "blue circle"."""
    level = rng.randint(40, 230)
    red, green, blue = (level + rng.randint(-12, 12) for _ in range(3))  # nearly grey: no shape has such a colour
    image = Image.new("RGB", (SIDE, SIDE), (red, green, blue))
    if rng.random() < 0.5:  # grain
        noise = Image.frombytes("L", (SIDE, SIDE), rng.randbytes(SIDE * SIDE)).point(lambda value: 112 + value // 8)
        image = ImageChops.add(image, Image.merge("RGB", [noise] * 3), offset=-128)
    radii = sorted((rng.uniform(17, 48) for _ in range(rng.randint(1, 4))), reverse=True)
    if len(radii) > 1:
        radii[1:] = [min(radius, radii[0] / 1.25) for radius in radii[1:]]  # no doubt which one is the largest
    placed: list[tuple[float, float, float]] = []
    names = []
    for radius in radii:
        shape, color = rng.choice(("circle", "square", "triangle", "star", "cross")), rng.choice(list(COLORS))
        for _ in range(200):
            x, y = (rng.uniform(1.3 * radius, SIDE - 1.3 * radius) for _ in range(2))
            if all(math.hypot(x - a, y - b) > 1.2 * (radius + r) for a, b, r in placed):
                break
        else:
            continue
        placed.append((x, y, radius))
        names.append(f"{color} {shape}")
        points = [(x + dx, y + dy) for dx, dy in outline(shape, radius)]
        ImageDraw.Draw(image).polygon(points, fill=COLORS[color])
    return image, names[0]


def main() -> None:
    """Write the folder."""
    folder = Path(sys.argv[1])
    pictures = int(sys.argv[2]) if len(sys.argv) > 2 else 600
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": pictures, "valid": 40, "test": 100}.items()):
        rng, lines = random.Random(seed), []
        for number in range(count):
            image, answer = draw(rng)
            image.save(folder / f"{split}-{number:04}.png")
            lines.append({"image": f"{split}-{number:04}.png", "prefix": "largest en", "suffix": answer})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{folder}: {pictures} pictures to learn from, 40 to validate with, 100 to test")


if __name__ == "__main__":
    main()
