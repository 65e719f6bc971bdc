"""What an evaluation beside training takes out of the figures, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from actors.engine import EngineClock
from configs.schema import RunSettings
from orchestration.engine_marks import evaluation_share, moved_on, tokens_between
from orchestration.evaluation import Evaluation
from orchestration.run_folder import RunFolder
from tests.orchestration.small_run import BEFORE as EVALUATED
from tests.orchestration.test_recorder import Books

MARKS = [EngineClock(10.0, 6.0, 1.0, 100), EngineClock(11.0, 7.0, 1.0, 200)]
BEFORE = [EngineClock(12.0, 7.0, 1.0, 150), EngineClock(13.0, 8.0, 1.0, 250)]
AFTER = [EngineClock(22.0, 16.0, 1.0, 1050), EngineClock(23.0, 14.0, 1.0, 950)]


def test_tokens_are_of_all_engines() -> None:
    assert tokens_between(MARKS, BEFORE) == 100
    assert tokens_between(BEFORE, AFTER) == 1600


def test_the_share_is_that_of_the_tokens() -> None:
    assert evaluation_share(BEFORE, AFTER, 1600) == 1.0
    assert evaluation_share(BEFORE, AFTER, 1200) == 0.75
    assert evaluation_share(BEFORE, BEFORE, 0) == 1.0


def test_without_tickets_in_flight_the_evaluation_never_was() -> None:
    moved = moved_on(MARKS, BEFORE, AFTER, 1.0)
    assert [(m.up_s, m.busy_s, m.paused_s) for m in moved] == [(20.0, 15.0, 1.0), (21.0, 13.0, 1.0)]
    assert [a.up_s - m.up_s for a, m in zip(AFTER, moved, strict=True)] == [2.0, 2.0]  # as before it began
    assert [m.sampled_tokens for m in moved] == [100, 200]


def test_a_share_of_the_time_stays_with_the_tickets_in_flight() -> None:
    first, _ = moved_on(MARKS, BEFORE, AFTER, 0.75)
    assert [first.up_s, first.busy_s] == pytest.approx([17.5, 12.75])


async def test_an_evaluation_is_no_training(tmp_path: Path) -> None:
    """It takes 8 s and 800 tokens, 600 of them its own: 6 s and 600 tokens are left out of what follows."""
    books = Books(RunFolder.reserve(RunSettings(root=str(tmp_path), name="run"), "x"))

    async def evaluating() -> Evaluation:
        books.actor.answers["clock"] = EngineClock(9.0, 4.5, 0.0, 1300)
        return replace(EVALUATED, sampled_tokens=600)

    await books.recorder.begin()
    await books.update(1, tokens=500)  # up 1 s, busy 0.5 s
    assert (await books.recorder.beside_training(evaluating())).sampled_tokens == 600
    line = await books.update(12, tokens=1400)  # up 12 s, busy 6 s
    assert line["generated_tokens"] == 500 + (1400 - 500 - 600)
    # Idle: up 11 - 6 s, busy 5.5 - 3 s.
    assert books.recorder.totals.actors_idle_s == pytest.approx(0.5 + 2.5)
    line = await books.update(13, tokens=1500)  # nothing is left out twice
    assert line["generated_tokens"] == 900
    books.close()
