"""Learning rates by hand."""

from __future__ import annotations

import pytest

from configs.schema import OptimSettings
from learner.schedule import learning_rate


def rates(updates: int, **settings: object) -> list[float]:
    optim = OptimSettings.model_validate({"lr": 8.0, **settings})
    return [learning_rate(optim, done, updates) for done in range(updates)]


def test_a_constant_rate() -> None:
    assert rates(3) == [8.0, 8.0, 8.0]


def test_a_warm_up_grows_to_the_rate() -> None:
    assert rates(5, warmup_updates=4) == [2.0, 4.0, 6.0, 8.0, 8.0]


def test_a_line_ends_at_its_share() -> None:
    assert rates(4, schedule="linear") == [6.0, 4.0, 2.0, 0.0]
    assert rates(4, schedule="linear", min_lr_share=0.5) == [7.0, 6.0, 5.0, 4.0]
    assert rates(6, schedule="linear", warmup_updates=2) == [4.0, 8.0, 6.0, 4.0, 2.0, 0.0]


def test_a_cosine_ends_at_its_share() -> None:
    assert rates(2, schedule="cosine") == pytest.approx([4.0, 0.0])
    assert rates(4, schedule="cosine", min_lr_share=0.25)[1] == pytest.approx(5.0)  # half way
    assert rates(4, schedule="cosine", min_lr_share=0.25)[-1] == pytest.approx(2.0)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_longer_than_the_run_only_grows(schedule: str) -> None:
    assert rates(3, schedule=schedule, warmup_updates=8) == [1.0, 2.0, 3.0]


def test_a_run_prolonged_beyond_its_schedule_stays_at_the_end() -> None:
    optim = OptimSettings(lr=8.0, schedule="linear", min_lr_share=0.5)
    assert learning_rate(optim, 9, 4) == 4.0
