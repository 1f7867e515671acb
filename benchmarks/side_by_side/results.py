"""The results of side_by_side, and a file that keeps them from run to run."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pg_mlx.errors import InputError

BATCH = 8
"""Pictures of a batch."""

Json = dict[str, Any]


@dataclass
class Result:
    """The results of one contestant in one setting."""

    setting: str
    contestant: str
    runs: list[Json] = field(default_factory=list)
    batches: dict[int, list[Json]] = field(default_factory=dict)
    starts: list[float] = field(default_factory=list)
    error: str = ""

    def median(self, name: str) -> float:
        """The median of "vision_s", "first_s" or "peak_bytes" over runs, or of "decode_s" over tokens."""
        values = [run[name] for run in self.runs]
        return statistics.median([x for value in values for x in (value if isinstance(value, list) else [value])])

    def batch_seconds(self, at_once: int) -> float:
        """For each picture."""
        return statistics.median(found["seconds"] for found in self.batches[at_once]) / BATCH


def kept(path: Path | None, about: Json) -> dict[str, list[Result]]:
    """The results of each setting from an earlier run. Raises InputError if it ran under other conditions."""
    if path is None or not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found["about"] != about:
        raise InputError(f"{path} holds results of another machine, other versions or other options")
    return {
        setting: [Result(**{**one, "batches": {int(n): runs for n, runs in one["batches"].items()}}) for one in results]
        for setting, results in found["settings"].items()
    }


def keep(path: Path | None, about: Json, results: dict[str, list[Result]]) -> None:
    if path is not None:
        settings = {name: [asdict(one) for one in of] for name, of in results.items()}
        path.write_text(json.dumps({"about": about, "settings": settings}))
