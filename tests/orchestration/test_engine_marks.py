"""What an evaluation beside training takes out of the figures, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from actors.engine import EngineClock
from configs.schema import RunSettings
from orchestration.engine_marks import cache_hits_between, evaluation_share, idle_between, moved_on, tokens_between
from orchestration.evaluation import Evaluation
from orchestration.run_folder import RunFolder
from tests.orchestration.small_run import BEFORE as EVALUATED
from tests.orchestration.test_recorder import ACTOR, Books

# By number and life of the actors; the second one was started again before.
FIRST, SECOND = (0, 1), (1, 2)
MARKS = {FIRST: EngineClock(10.0, 6.0, 1.0, 100), SECOND: EngineClock(11.0, 7.0, 1.0, 200)}
BEFORE = {FIRST: EngineClock(12.0, 7.0, 1.0, 150), SECOND: EngineClock(13.0, 8.0, 1.0, 250)}
AFTER = {FIRST: EngineClock(22.0, 16.0, 1.0, 1050), SECOND: EngineClock(23.0, 14.0, 1.0, 950)}


def test_tokens_are_of_all_engines() -> None:
    assert tokens_between(MARKS, BEFORE) == 100
    assert tokens_between(BEFORE, AFTER) == 1600


def test_cache_hits_are_of_all_engines_prompts() -> None:
    before = {FIRST: EngineClock(1.0, 1.0, 0.0, 0, 100, 90)}
    after = {FIRST: EngineClock(2.0, 2.0, 0.0, 0, 160, 120), SECOND: EngineClock(1.0, 1.0, 0.0, 0, 40, 20)}
    assert cache_hits_between(before, after) == (30 + 20) / (60 + 40)
    assert cache_hits_between(after, after) is None
    assert cache_hits_between(after, {}) is None


def test_the_share_is_that_of_the_tokens() -> None:
    assert evaluation_share(BEFORE, AFTER, 1600) == 1.0
    assert evaluation_share(BEFORE, AFTER, 1200) == 0.75
    assert evaluation_share(BEFORE, BEFORE, 0) == 1.0


def test_without_tickets_in_flight_the_evaluation_never_was() -> None:
    moved = moved_on(MARKS, BEFORE, AFTER, 1.0)
    assert list(moved) == [FIRST, SECOND]
    assert [(m.up_s, m.busy_s, m.paused_s) for m in moved.values()] == [(20.0, 15.0, 1.0), (21.0, 13.0, 1.0)]
    assert [AFTER[key].up_s - moved[key].up_s for key in AFTER] == [2.0, 2.0]  # as before it began
    assert [m.sampled_tokens for m in moved.values()] == [100, 200]


def test_a_share_of_the_time_stays_with_the_tickets_in_flight() -> None:
    first = moved_on(MARKS, BEFORE, AFTER, 0.75)[FIRST]
    assert [first.up_s, first.busy_s] == pytest.approx([17.5, 12.75])


def test_an_engine_that_was_started_again_counts_from_its_start() -> None:
    again = {FIRST: AFTER[FIRST], (1, 3): EngineClock(4.0, 1.0, 0.0, 70)}
    assert tokens_between(BEFORE, again) == 900 + 70
    # Idle: the first 10 - 9 s, the new one 4 - 1 s.
    assert idle_between(BEFORE, again) == pytest.approx((1.0 + 3.0) / 2)
    moved = moved_on(MARKS, BEFORE, again, 1.0)
    assert list(moved) == [FIRST, (1, 3)]
    assert moved[1, 3] == EngineClock(4.0, 1.0, 0.0, 0)  # nothing of it was before the evaluation


def test_without_an_engine_there_is_no_idle_one_and_no_token() -> None:
    assert (idle_between(BEFORE, {}), tokens_between(BEFORE, {}), moved_on(MARKS, BEFORE, {}, 0.5)) == (0.0, 0, {})


async def test_an_evaluation_is_no_training(tmp_path: Path) -> None:
    """It takes 8 s and 800 tokens, 600 of them its own: 6 s and 600 tokens are left out of what follows."""
    books = Books(RunFolder.reserve(RunSettings(root=str(tmp_path), name="run"), "x"))

    async def evaluating() -> Evaluation:
        books.fleet.own = {ACTOR: EngineClock(9.0, 4.5, 0.0, 1300)}
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


async def test_what_an_actor_sampled_for_an_evaluation_before_it_died_is_taken_off_no_other_tokens(
    tmp_path: Path,
) -> None:
    """Its clock is gone, and with it the evaluation's tokens: what was spent never becomes less."""
    books = Books(RunFolder.reserve(RunSettings(root=str(tmp_path), name="run"), "x"))

    async def evaluating() -> Evaluation:
        books.fleet.own = {ACTOR: EngineClock(9.0, 4.5, 0.0, 1100)}
        return replace(EVALUATED, sampled_tokens=600)

    await books.recorder.begin()
    assert (await books.update(1, tokens=500))["generated_tokens"] == 500
    await books.recorder.beside_training(evaluating())
    line = await books.update(2, tokens=40, life=2)
    assert 500 <= line["generated_tokens"] <= 540
    books.close()
