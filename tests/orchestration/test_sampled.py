"""Sums over receipts: pivots by depth, coverage, what failed tickets cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.receipt import Receipt
from envs.trajectory import GroupStats, PivotTrial
from orchestration.sampled import PivotSums, Sampled
from tests.builders import TICKET


def trial(depth: float, branches: int = 4, solved: int = 0, gain: float = 0.0) -> PivotTrial:
    return PivotTrial(0, 1, depth, (depth,), branches, solved, gain)


def summed(*receipts: Receipt) -> Sampled:
    sampled = Sampled()
    for receipt in receipts:
        sampled.add(receipt)
    return sampled


def receipt(state: str = "queued", covered: bool = False, question: str = "", *found: str, targets: int = 4) -> Receipt:
    """Of a question with common right answers where it has a name."""
    if not question:
        return Receipt(TICKET, state, covered=covered)
    return Receipt(TICKET, state, covered=bool(found), targets=targets, question=question, found=found)


def test_pivots_by_hand() -> None:
    trials = (trial(0.1, solved=2, gain=0.5), trial(0.2), trial(0.5, solved=4, gain=1.0), trial(0.6, gain=-0.1))
    sums = summed(replace(receipt(), pivots=trials[:3]), replace(receipt("filtered"), pivots=trials[3:])).pivots
    assert (sums.pivots, sums.recovered) == (4, 2)
    assert sums.recovered_share == 0.5
    assert sums.gain_mean == pytest.approx(0.35)
    assert sums.depth_mean == pytest.approx(0.35)
    assert sums.recovered_by_depth == [0.5, None, 0.5, None]


@pytest.mark.parametrize(
    ("depth", "place"), [(0.0, 0), (0.249, 0), (0.25, 1), (0.5, 2), (0.749, 2), (0.75, 3), (0.99, 3), (1.0, 3)]
)
def test_bins_hold_their_lower_end_and_the_last_one_both(depth: float, place: int) -> None:
    sums = PivotSums().plus(trial(depth, solved=1))
    assert sums.in_bin == sums.recovered_in_bin == tuple(int(i == place) for i in range(4))


def test_a_pivot_of_which_no_branch_was_judged_is_none() -> None:
    assert PivotSums().plus(trial(0.5, branches=0)) == PivotSums()


def test_without_pivots_there_is_no_number() -> None:
    sums = PivotSums()
    assert (sums.recovered_share, sums.gain_mean, sums.depth_mean) == (None, None, None)
    assert sums.recovered_by_depth == [None] * 4


def test_coverage_is_the_share_of_groups_where_each_episode_has_its_own_answers() -> None:
    assert summed(receipt(covered=True), receipt(), receipt("filtered", covered=True), receipt()).coverage == 0.5


def test_coverage_counts_an_answer_once_however_often_it_was_found() -> None:
    sampled = summed(receipt("queued", False, "m", "a", "b"), receipt("filtered", False, "m", "b", "c"))
    assert sampled.coverage == 3 / 4
    assert summed(receipt("queued", False, "m")).coverage == 0.0


def test_several_maps_have_answers_of_their_own() -> None:
    """Of 2 maps with 4 answers each: a on both, b on one."""
    sampled = summed(receipt("queued", False, "m", "a"), receipt("queued", False, "n", "a", "b"))
    assert sampled.coverage == 3 / 8


def test_nothing_sampled_covers_nothing_and_says_so() -> None:
    assert Sampled().coverage is None
    assert summed(receipt("failed", True)).coverage is None


def test_of_a_ticket_given_up_the_steps_it_cost_count() -> None:
    stats = GroupStats(sketches=3, duplicate_sketches=2, env_steps=5)
    sampled = summed(replace(receipt("failed"), stats=stats, solved=1, branch_tokens=7, pivots=(trial(0.1),)))
    assert sampled == Sampled(failed=1, stats=GroupStats(env_steps=5))


def test_replaced_workers_add_up_whatever_became_of_the_tickets() -> None:
    found = (replace(receipt(state), replaced_workers=n) for n, state in enumerate(("queued", "filtered", "failed")))
    assert summed(*found).replaced_workers == 3


def test_tokens_of_branches_add_up() -> None:
    assert summed(*(replace(receipt(), branch_tokens=n) for n in (3, 4))).branch_tokens == 7
