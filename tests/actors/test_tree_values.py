"""Where trees fork and what their nodes are worth: by hand, and against a brute force over leaves for random trees."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from math import sqrt
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.episode import Episode
from actors.samplers.parallel import is_trainable
from actors.samplers.tree_values import Fork, cut_at, least_likely, valued_nodes
from envs.trajectory import Floats, Role, Segment, Trajectory, Verdict
from tests.builders import answer, ints, observation, prompt, token_ids_of


def said(logprobs: dict[int, float]) -> Segment:
    """An answer of these tokens with these log-probs."""
    versions = np.zeros(len(logprobs), np.int32)
    return Segment(Role.ANSWER, ints(*logprobs), np.array([*logprobs.values()], np.float32), versions)


def trajectory(
    *segments: Segment, reward: float = 0.0, parent: int | None = None, pivot: int | None = None
) -> Trajectory:
    return Trajectory(segments, Verdict.WRONG, reward, parent=parent, pivot=pivot)


def failed(of: Trajectory) -> Trajectory:
    return replace(of, verdict=Verdict.FAILED, reward=0.0)


# --- values, by hand -------------------------------------------------------------------------------------------------

SHARED, TAIL = answer(10, 11), answer(12, 13)


def two_trees(*more: Trajectory) -> list[Trajectory]:
    """A tree that forks behind two of its four tokens, with leaves of 1, 0 and 1, and a tree of one leaf, 0."""
    first = trajectory(prompt(1), SHARED, TAIL, reward=1.0)
    branches = [
        trajectory(prompt(1), SHARED, answer(t), reward=r, parent=0, pivot=2) for t, r in ((20, 0.0), (30, 1.0))
    ]
    return [first, *branches, trajectory(prompt(1), answer(40), reward=0.0), *more]


def test_values_and_advantages_by_hand() -> None:
    nodes = list(valued_nodes(two_trees()))
    assert [(n.trajectory, n.first, n.last, n.leaves) for n in nodes] == [
        *((0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 1), (2, 2, 3, 1), (3, 1, 2, 1)),
    ]
    # V_root is 1/2: one half of the four leaves.
    assert [n.value for n in nodes] == pytest.approx([2 / 3, 1, 0, 1, 0])
    assert [n.advantage for n in nodes] == pytest.approx([1 / 3 / sqrt(3), 5 / 6, -7 / 6, 5 / 6, -1])


def test_failed_leaves_and_ones_without_an_answer_are_in_no_value() -> None:
    of_branch = trajectory(prompt(1), SHARED, answer(50), parent=0, pivot=2)
    more = [failed(of_branch), failed(trajectory(prompt(1), answer(60))), trajectory(prompt(1), reward=9.0)]
    assert list(valued_nodes(two_trees(*more))) == list(valued_nodes(two_trees()))
    assert list(valued_nodes(more)) == []


def test_a_branch_at_the_first_token_of_all_has_the_prompt_for_its_parent() -> None:
    tree = [trajectory(prompt(1), answer(2), reward=1.0), trajectory(prompt(1), answer(3), parent=0, pivot=1)]
    assert [(n.value, n.advantage) for n in valued_nodes(tree)] == [(1, 1), (0, -1)]


def test_turns_that_nothing_left_between_are_one_node() -> None:
    segments = (prompt(1), answer(2), observation(3), answer(4))
    tree = [trajectory(*segments, reward=1.0), trajectory(*segments[:3], answer(5), parent=0, pivot=3)]
    assert [(n.trajectory, n.first, n.last) for n in valued_nodes(tree)] == [(0, 1, 3), (0, 3, 4), (1, 3, 4)]
    assert [(n.trajectory, n.first, n.last) for n in valued_nodes(tree[:1])] == [(0, 1, 4)]


@pytest.mark.parametrize("rewards", [[0.1] * 7, [0.1, 0.1, 0.7, 0.7, 0.1, 0.7]])
def test_equal_values_leave_no_advantage_at_all(rewards: list[float]) -> None:
    """Neither do equal rewards, nor a node of the very mixture that all leaves have: no 1e-17 that counts as signal."""
    trunk = trajectory(prompt(1), SHARED, TAIL, reward=rewards[0])
    tree = [trunk, *(trajectory(prompt(1), SHARED, answer(9), reward=r, parent=0, pivot=2) for r in rewards[1:])]
    first, *_ = nodes = list(valued_nodes(tree))
    assert first.advantage == 0.0
    if len(set(rewards)) == 1:
        assert {n.advantage for n in nodes} == {0.0}


# --- forks, by hand --------------------------------------------------------------------------------------------------


def test_the_least_likely_tokens_of_a_whole_tree() -> None:
    shared = said({10: -0.5, 11: -2.0})
    tree = [
        trajectory(prompt(1, 2), shared, said({12: -9.0, 13: -1.0}), observation(3), said({14: -3.0})),
        trajectory(prompt(1, 2), shared, said({20: -8.0, 21: -1.5}), parent=0, pivot=2),
        failed(trajectory(prompt(1, 2), shared, said({30: -8.0, 31: -7.0}), parent=0, pivot=2)),
    ]
    # Tokens 12 and 20 follow the fork that is there already; 10 and 11 count once; the failed one is no place to fork.
    expected = [Fork(0, 7), Fork(0, 3), Fork(1, 5), Fork(0, 5), Fork(0, 2)]
    assert least_likely(tree, 9) == expected
    assert least_likely(tree, 2) == expected[:2]


def test_of_equal_tokens_the_first_is_taken_and_the_first_of_all_may_be() -> None:
    tree = [trajectory(prompt(1), answer(5, 6), observation(7), answer(8))]
    assert least_likely(tree, 2) == [Fork(0, 1), Fork(0, 2)]
    assert least_likely([failed(tree[0])], 2) == []


def test_cuts_go_into_every_trajectory_that_holds_the_token_and_pivots_follow() -> None:
    trunk = (prompt(1), answer(10, 11, 12, 13))
    tree = [
        trajectory(*trunk, observation(2), answer(14)),
        trajectory(*trunk, observation(2), answer(20, 21), parent=0, pivot=3),
        trajectory(*trunk, observation(2), answer(20, 21), observation(3), answer(30), parent=1, pivot=5),
    ]
    episodes, pivots = cut_at([Episode(t) for t in tree], [Fork(1, 7), Fork(0, 4), Fork(0, 2), Fork(2, 9)])
    cut = [e.trajectory for e in episodes]
    pieces = [[s.token_ids.tolist() for s in t.segments] for t in cut]
    assert pieces[0] == [[1], [10], [11, 12], [13], [2], [14]]
    assert pieces[1] == [[1], [10], [11, 12], [13], [2], [20], [21]]
    assert pieces[2] == [[1], [10], [11, 12], [13], [2], [20], [21], [3], [30]]
    assert [(t.parent, t.pivot) for t in cut] == [(None, None), (0, 5), (1, 8)]
    assert pivots == [6, 3, 2, 8]
    assert [token_ids_of(t.segments) for t in cut] == [token_ids_of(t.segments) for t in tree]


def test_a_cut_behind_what_a_branch_shares_leaves_the_branch_alone() -> None:
    tree = [
        trajectory(prompt(1), SHARED, TAIL),
        trajectory(prompt(1), SHARED, answer(20), parent=0, pivot=2),
    ]
    episodes, pivots = cut_at([Episode(t) for t in tree], [Fork(0, 4), Fork(0, 2)])
    assert [[len(s.token_ids) for s in e.trajectory.segments] for e in episodes] == [[1, 1, 1, 1, 1], [1, 1, 1, 1]]
    assert (pivots, episodes[1].trajectory.pivot) == ([4, 2], 3)


# --- any tree, against a brute force ---------------------------------------------------------------------------------

REWARDS = st.sampled_from([0.0, 0.1, 0.3, 1.0, -0.5])


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[Trajectory], list[int]]:
    """Trees grown as the sampler grows them, every sampled token an id of its own, and the trees' sizes."""
    fresh = count(100)

    def played(begun: tuple[Segment, ...], parent: int | None = None) -> Trajectory:
        segments = [*begun]
        for turn in range(draw(st.integers(1, 3))):
            segments += [observation(7)] if turn else []
            logprobs: Floats = -np.array(draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)), np.float32)
            segments.append(said({next(fresh): float(p) for p in logprobs}))
        verdict = draw(st.sampled_from([Verdict.WRONG, Verdict.WRONG, Verdict.WRONG, Verdict.FAILED]))
        pivot = None if parent is None else len(begun)
        return Trajectory(tuple(segments), verdict, draw(REWARDS), parent=parent, pivot=pivot)

    forest: list[Trajectory] = []
    sizes = []
    for _ in range(draw(st.integers(1, 3))):
        tree = [Episode(played((prompt(1, 2),)))]
        for _ in range(draw(st.integers(0, 3))):
            before = [e.trajectory for e in tree]
            forks = least_likely(before, draw(st.integers(1, 3)))
            assert [token for _, token in _rarest(before)][: len(forks)] == [_token(before, f) for f in forks]
            tree, pivots = cut_at(tree, forks)
            for fork, pivot in zip(forks, pivots, strict=True):
                shared = tree[fork.trajectory].trajectory.segments[:pivot]
                tree += [Episode(played(shared, fork.trajectory)) for _ in range(draw(st.integers(1, 2)))]
        offset = len(forest)
        forest += [
            t if t.parent is None else replace(t, parent=t.parent + offset) for t in (e.trajectory for e in tree)
        ]
        sizes.append(len(tree))
    return forest, sizes


def _token(tree: list[Trajectory], fork: Fork) -> int:
    return token_ids_of(tree[fork.trajectory].segments)[fork.position]


def _rarest(tree: list[Trajectory]) -> list[tuple[float, int]]:
    """(log-prob, token) of all tokens a fork may come before, the least likely first.

    Not of those behind a prefix that several tokens follow: it has a fork.
    """
    following: dict[tuple[int, ...], dict[int, float]] = {}
    for t in filter(is_trainable, tree):
        begin: tuple[int, ...] = ()
        for segment in t.segments:
            for token, logprob in zip(segment.token_ids.tolist(), segment.behaviour_logprobs.tolist(), strict=False):
                following.setdefault(begin, {})[token] = logprob
                begin = (*begin, token)
            if not segment.sampled:
                begin = (*begin, *segment.token_ids.tolist())
    forked = {tuple(token_ids_of(t.segments[: t.pivot])) for t in tree if t.parent is not None}
    return sorted(
        (p, token) for prefix, tokens in following.items() if prefix not in forked for token, p in tokens.items()
    )


@given(forests())
def test_any_tree_has_the_values_that_its_leaves_give_token_by_token(drawn: tuple[list[Trajectory], list[int]]) -> None:
    forest, _ = drawn
    leaves = [t for t in forest if is_trainable(t)]
    nodes = list(valued_nodes(forest))
    trained: list[int] = []
    for node in nodes:
        whole = forest[node.trajectory].segments
        own = token_ids_of([s for s in whole[node.first : node.last] if s.sampled])
        before = token_ids_of([s for s in whole[: node.first] if s.sampled])
        trained += own
        for token in own:
            assert _expected(leaves, token, before[-1] if before else None) == pytest.approx(
                (node.leaves, node.value, node.advantage), abs=1e-12
            )
    sampled = {token for t in leaves for s in t.segments if s.sampled for token in s.token_ids.tolist()}
    assert sorted(trained) == sorted(sampled), "every token in exactly one node"


def _expected(leaves: list[Trajectory], token: int, before: int | None) -> tuple[int, float, float]:
    """(leaves, V, advantage) of a token; before: the sampled token before its node, which only the parent holds."""
    below = [t.reward for t in leaves if token in token_ids_of(t.segments)]
    parent = [t.reward for t in leaves if before is None or before in token_ids_of(t.segments)]
    value, root = fmean(below), fmean(t.reward for t in leaves)
    return len(below), value, (value - root + value - fmean(parent)) / sqrt(len(below))


@given(forests())
def test_any_branch_begins_with_the_segments_of_its_parent(drawn: tuple[list[Trajectory], list[int]]) -> None:
    forest, sizes = drawn
    begins = np.cumsum([0, *sizes])
    for number, branch in enumerate(forest):
        if branch.parent is None or branch.pivot is None:
            assert number in begins
            continue
        shared = zip(branch.segments[: branch.pivot], forest[branch.parent].segments, strict=False)
        assert all(mine.token_ids.tolist() == theirs.token_ids.tolist() for mine, theirs in shared)
        assert branch.pivot > (forest[branch.parent].pivot or 0)
