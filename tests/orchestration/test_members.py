"""Who gets the next ticket, and how the actors are told of."""

from __future__ import annotations

import pytest

from orchestration.members import Member, Phase, in_phase, in_words, least_loaded

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
    found = least_loaded(members(*loads), most)
    assert (None if found is None else found.number) == number


def test_nobody_is_up() -> None:
    assert least_loaded([], 4) is None
    assert least_loaded(members(phases=[Phase.COMING, Phase.READY, Phase.LEAVING, Phase.GONE]), 4) is None


def test_members_of_several_phases_come_in_their_order() -> None:
    assert [m.number for m in in_phase(members(), Phase.UP, Phase.COMING)] == [0, 1, 3, 6]
    assert in_phase(members(), *Phase) == members()
    assert in_phase(members()) == []


def test_a_member_is_called_by_its_number() -> None:
    assert [member.name for member in members()[:2]] == ["rollout actor 0", "rollout actor 1"]


def test_they_are_told_of_in_numbers_but_for_those_that_have_left() -> None:
    assert in_words(members()).split(", ") == ["1 coming", "1 ready", "3 up", "1 leaving"]
    assert in_words(members(phases=[Phase.GONE])) == in_words([]) == "none left"
