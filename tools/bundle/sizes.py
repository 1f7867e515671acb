"""How large a helper folder is, by package."""

from __future__ import annotations

import csv

from tools.bundle.layout import Layout


def table(layout: Layout) -> list[tuple[str, int]]:
    """Names and bytes: of each package, by its own list of files; of Python; of all bytecode; and in all."""
    sizes = {path: path.stat().st_size for path in layout.files() if not path.is_symlink()}
    bytecode = sum(size for path, size in sizes.items() if path.suffix == ".pyc")
    rows = []
    for record in layout.packages.glob("*.dist-info/RECORD"):
        with record.open(newline="") as file:
            own = [layout.packages / row[0] for row in csv.reader(file) if not row[0].endswith(".pyc")]
        rows.append((record.parent.name.removesuffix(".dist-info"), sum(sizes.get(path, 0) for path in own)))
    python = sum(size for path, size in sizes.items() if path.is_relative_to(layout.root / "python"))
    python -= sum(s for p, s in sizes.items() if p.is_relative_to(layout.root / "python") and p.suffix == ".pyc")
    rows.append((f"Python {layout.version}", python))
    rows.sort(key=lambda row: -row[1])
    return [*rows, ("bytecode", bytecode), ("in all", sum(sizes.values()))]
