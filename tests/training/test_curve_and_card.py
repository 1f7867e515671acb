"""What a person looks at: the curves, and the model card."""

from __future__ import annotations

import numpy as np
import pytest

from pg_mlx.chart import PANEL, WIDTH
from pg_mlx.training.card import model_card
from pg_mlx.training.curve import draw_curve
from pg_mlx.training.settings import TrainSettings
from pg_mlx.training.state import RunProgress


def report(step: int, loss: float) -> dict:
    return {"event": "report", "step": step, "loss": loss}


def evaluation(step: int, loss: float | None, best: bool = False, **scores: float) -> dict:
    return {"event": "evaluation", "step": step, "loss": loss, "best": best, "scores": {"rows": 9, **scores}}


def column_of(image: np.ndarray, color: tuple[int, int, int], x: int) -> float:
    """Where a line of this colour crosses a column, as its mean row."""
    return float(np.nonzero((image[:, x] == color).all(axis=-1))[0].mean())


def test_a_falling_loss_falls_in_the_picture() -> None:
    log = [report(step, 10 - step / 10) for step in range(0, 101, 5)]
    image = np.asarray(draw_curve(log))
    assert image.shape == (PANEL, WIDTH, 3)
    rows = [column_of(image, (31, 119, 180), x) for x in (100, 400, 700)]
    assert rows[0] < rows[1] < rows[2]


@pytest.mark.parametrize("log", [[], [report(1, 0.0)], [evaluation(3, None, exact=0.0)], [report(7, 1e9)]])
def test_little_is_drawn_too(log: list[dict]) -> None:
    assert draw_curve(log).width == WIDTH


def test_scores_have_a_panel_of_their_own() -> None:
    image = draw_curve([report(1, 2.0), evaluation(1, 2.0, exact=0.25, map=0.5)])
    assert image.height == 2 * PANEL


def test_the_card_has_scores_base_and_settings() -> None:
    log = [report(1, 3.0), evaluation(50, 1.0, best=True, exact=0.5), evaluation(100, 1.5, exact=0.25)]
    card = model_card(
        TrainSettings(data="D", train_vision=True, mix=("old=0.25",)),
        "google/paligemma2-3b-pt-224",
        log,
        RunProgress(step=100, trained_tokens=12_345, best_step=50),
    )
    assert card.startswith("---\nbase_model: google/paligemma2-3b-pt-224\nlibrary_name: peft\n")
    assert "100 steps of 8 rows, 12,345 tokens of answers. `best/` holds step 50" in card
    assert "| 50 (best) | 1.000 | 0.500 |" in card and "| 100 | 1.500 | 0.250 |" in card
    assert "the decoder, the vision tower and the projector" in card
    assert "learning rate 0.0001" in card and "mixed in" in card
