"""Who gets the next ticket, and how the actors are told of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import RunConfig
from orchestration.members import Member, Phase, Roster, answer_limit_s, in_phase, in_words

PHASES = [Phase.UP, Phase.COMING, Phase.READY, Phase.UP, Phase.LEAVING, Phase.GONE, Phase.UP]


def members(*loads: int, phases: list[Phase] = PHASES) -> list[Member]:
    """Numbered from 0, in these phases; loads: of the first ones."""
    made = [Member(number, None, phase=phase) for number, phase in enumerate(phases)]
    for member, load in zip(made, loads, strict=False):
        member.load = load
    return made


@pytest.mark.parametrize(
    ("loads", "most", "number"),
    [
        ((), 4, 0),
        ((1,), 4, 3),
        ((1, 0, 0, 1), 4, 6),
        ((1, 0, 0, 1, 0, 0, 1), 4, 0),
        ((2, 0, 0, 1, 0, 0, 1), 4, 3),
        ((3, 0, 0, 2, 0, 0, 3), 3, 3),
        ((3, 0, 0, 3, 0, 0, 3), 3, None),
    ],
)
def test_the_next_ticket_goes_to_the_one_with_the_fewest_of_those_that_are_up(
    loads: tuple[int, ...], most: int, number: int | None
) -> None:
    found = Roster(members(*loads)).least_loaded(most)
    assert (None if found is None else found.number) == number


def test_nobody_is_up() -> None:
    assert Roster([]).least_loaded(4) is None
    assert Roster(members(phases=[Phase.COMING, Phase.READY, Phase.LEAVING, Phase.GONE])).least_loaded(4) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from(Phase) | st.integers(0, 4)),
        max_size=60,
    )
)
def test_the_order_kept_is_the_order_looked_for(changes: list[tuple[int, Phase | int]]) -> None:
    """Whatever phases and loads become, in whatever order."""
    roster = Roster(members(0, 1, 1))
    for number, to in changes:
        member = roster.members[number]
        if isinstance(to, Phase):
            roster.move(member, to)
        else:
            roster.set_load(member, to)
        up = in_phase(roster.members, Phase.UP)
        free = [m for m in up if m.load < 3]
        assert roster.least_loaded(3) is min(free, key=lambda m: (m.load, m.number), default=None)
        assert roster.up_count == len(up)


def test_one_that_joins_gets_tickets_when_it_is_up() -> None:
    roster = Roster(members(1, 0, 0, 1, 0, 0, 1))
    roster.add(joined := Member(7, None))
    assert roster.least_loaded(4) is roster.members[0]
    roster.move(joined, Phase.UP)
    assert roster.least_loaded(4) is joined


def test_members_of_several_phases_come_in_their_order() -> None:
    assert [m.number for m in in_phase(members(), Phase.UP, Phase.COMING)] == [0, 1, 3, 6]
    assert in_phase(members(), *Phase) == members()
    assert in_phase(members()) == []


def test_a_member_is_called_by_its_number() -> None:
    assert [member.name for member in members()[:2]] == ["rollout actor 0", "rollout actor 1"]


def test_they_are_told_of_in_numbers_but_for_those_that_have_left() -> None:
    assert in_words(members()).split(", ") == ["1 coming", "1 ready", "3 up", "1 leaving"]
    assert in_words(members(phases=[Phase.GONE])) == in_words([]) == "none left"


def test_an_attempt_may_sleep_through_as_many_updates_as_its_lag_allows() -> None:
    settings = {
        "rollout": {"ticket_timeout_s": 10}, "queue": {"timeout_s": 5, "max_policy_lag": 2},
        "deepspeed": {"timeout_s": 100},
    }  # fmt: skip
    assert answer_limit_s(RunConfig.model_validate(settings)) == 15
    assert answer_limit_s(RunConfig.model_validate(settings | {"cluster": {"colocated": True}})) == 315
