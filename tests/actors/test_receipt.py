"""What the driver hears of a group."""

from __future__ import annotations

from dataclasses import replace

from actors.receipt import all_cut
from envs.trajectory import Group
from tests.builders import parallel_group


def cut(group: Group, *numbers: int) -> Group:
    """The answers of these trajectories met their token limit."""
    trajectories = tuple(
        replace(t, segments=(*t.segments[:-1], replace(t.segments[-1], ended=False))) if i in numbers else t
        for i, t in enumerate(group.trajectories)
    )
    return replace(group, trajectories=trajectories)


def test_a_group_of_answers_that_were_all_cut() -> None:
    group = parallel_group(1.0, 0.0, 0.0)
    assert not all_cut(group)
    assert not all_cut(cut(group, 0, 2))
    assert all_cut(cut(group, 0, 1, 2))
