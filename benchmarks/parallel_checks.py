"""(part of `parallel`) Do all ranks see the same, and how many messages do they send in all?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.parallel_cases import STEPS, answer, golden, loaded
from pg_mlx.gemma import Gemma
from pg_mlx.parallel import link as link_module
from pg_mlx.parallel.follower import Follower
from pg_mlx.parallel.link import Link

BEFORE = "from benchmarks.parallel_checks import Watched, watch\nwatch({many_bytes})"
"""Runs on all ranks first. many_bytes: messages of more bytes are added up by all_sum among three ranks."""

PASSES = 5

_seen: list[mx.array] = []
"""What all ranks have received together, and the hidden states that have left this rank's layers."""
_counts = {"gather": 0, "send": 0, "all_sum": 0}
"""How many messages this rank has begun, or taken part in with all others."""


def watch(many_bytes: int) -> None:
    """Keep what passes through this process from now on."""

    def kept(method: Callable[..., tuple[mx.array, Any]]) -> Callable[..., tuple[mx.array, Any]]:
        def wrapped(*given: Any) -> tuple[mx.array, Any]:
            hidden, cache = method(*given)
            _seen.append(hidden)
            return hidden, cache

        return wrapped

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **options: Any) -> Any:
            result = method(*given, **options)
            _counts[name] += 1
            if name == "gather":
                _seen.append(result)
            return result

        return wrapped

    for name in ("prefill", "extend"):
        setattr(Gemma, name, kept(getattr(Gemma, name)))
    for name in ("gather", "send"):
        setattr(Link, name, counted(name, getattr(Link, name)))
    mx.distributed.all_sum = counted("all_sum", mx.distributed.all_sum)
    link_module._MANY_BYTES = many_bytes


def report() -> str:
    """What this rank has seen, as JSON with a digest."""
    digest = hashlib.sha256()
    for array in _seen:
        digest.update(f"{array.shape} {array.dtype}".encode() + np.array(array.astype(mx.float32)).tobytes())
    return json.dumps({**_counts, "seen": digest.hexdigest(), "arrays": len(_seen)})


class Watched(Follower):
    """A follower that reports at its end."""

    def run(self) -> None:
        super().run()
        self._link.exchange(report())


def reports(link: Link) -> list[dict[str, Any]]:
    """Rank 0: end the others, and collect what all ranks report."""
    link.stop()
    return [json.loads(text) for text in link.exchange(report())]


def tensor_ranks_are_alike(link: Link, family: str) -> None:
    """All ranks have seen the same bits: every message, and the hidden states behind the last layer."""
    folder, pixels, ids, tokens = golden(family)
    model = loaded(link, "tensor", "", folder)
    _, chosen = answer(model, pixels, ids)
    assert chosen[: len(tokens)] == tokens
    first, *others = reports(link)
    assert all(other == first for other in others), (first, others)
    sums = 2 * (STEPS + 1) * model.config.text.num_hidden_layers
    assert first["all_sum"] == (sums if link.size > 2 and link_module._MANY_BYTES == 0 else 0)
    assert first["arrays"] > sums - first["all_sum"] + STEPS


def pipeline_messages(link: Link) -> None:
    """In a pass all ranks together send one message more than there are ranks."""
    folder, pixels, ids, _ = golden("pg2")
    model = loaded(link, "pipeline", "", folder)
    before = _counts["gather"]
    logits, cache = model.prefill(model.encode_image(pixels), ids, capacity=100)
    for _ in range(PASSES - 1):
        logits, cache = model.step(mx.argmax(logits, axis=-1), cache)
        mx.eval(logits)
    commands = _counts["gather"] - before
    sent = sum(one["send"] for one in reports(link))
    assert (commands, sent) == (PASSES, link.size * PASSES), (commands, sent)
