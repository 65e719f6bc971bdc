"""TreeRL's pure parts: where a tree forks, and what each of its nodes is worth (arXiv 2506.11902).

A tree is a list of trajectories, parents before their branches. A node is a run of segments between two forks: it
belongs to the trajectory that sampled it, and its leaves are the trajectories that hold it. FAILED ones are none.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt
from statistics import mean

import numpy as np

from actors.episode import Episode
from actors.samplers.parallel import is_trainable
from envs.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Fork:
    """The place before token `position`, counted from 0 and from the prompt on, of trajectory number `trajectory`."""

    trajectory: int
    position: int


@dataclass(frozen=True, slots=True)
class Node:
    """Segments [first, last) of trajectory number `trajectory`. leaves: how many are below it, itself one of them.

    value: V, the mean reward of its leaves. advantage: [(V - V_root) + (V - V_parent)] / sqrt(leaves).
    """

    trajectory: int
    first: int
    last: int
    leaves: int
    value: float
    advantage: float


def least_likely(tree: Sequence[Trajectory], count: int) -> list[Fork]:
    """Places before the `count` sampled tokens of highest -log-prob, the first of equals; fewer where there are fewer.

    A token that several trajectories hold counts once. Where branches begin already there is no other fork.
    """
    return [Fork(number, position) for _, number, position in heapq.nsmallest(count, _candidates(tree, count))]


def _candidates(tree: Sequence[Trajectory], count: int) -> Iterator[tuple[float, int, int]]:
    """(log-prob, trajectory, position) of tokens a fork may come before: of each segment the `count` least likely."""
    forked = {(t.parent, t.pivot) for t in tree}
    for number, trajectory in enumerate(tree):
        if not is_trainable(trajectory):
            continue
        begin = 0
        for index, segment in enumerate(trajectory.segments):
            if index >= _first_own(trajectory) and segment.sampled:
                # The first token of a branch has its parent's fork before it.
                taken = int((number, index) in forked or index == trajectory.pivot)
                order = np.argsort(segment.behaviour_logprobs[taken:], kind="stable")[:count] + taken
                yield from ((float(segment.behaviour_logprobs[i]), number, begin + int(i)) for i in order)
            begin += len(segment.token_ids)


def cut_at(tree: Sequence[Episode], forks: Sequence[Fork]) -> tuple[list[Episode], list[int]]:
    """The tree with a segment's end at each fork, in every trajectory that holds the token behind it, and the pivots.

    pivots: of branches from each fork, the number of segments before it.
    """
    episodes = [*tree]
    for fork in forks:
        for number in _holders([e.trajectory for e in episodes], fork):
            episodes[number] = _cut(episodes[number], fork.position)
    return episodes, [_segment_at(episodes[f.trajectory].trajectory, f.position)[0] for f in forks]


def _holders(tree: Sequence[Trajectory], fork: Fork) -> set[int]:
    """Who holds the token behind a fork: the trajectory that sampled it, and branches that left it further on."""
    holders = {fork.trajectory}
    for number, trajectory in enumerate(tree):
        shared = sum(len(s.token_ids) for s in trajectory.segments[: trajectory.pivot or 0])
        if trajectory.parent in holders and shared > fork.position:
            holders.add(number)
    return holders


def _cut(episode: Episode, position: int) -> Episode:
    index, offset = _segment_at(episode.trajectory, position)
    if not offset:
        return episode
    cut = episode.cut(index, offset)
    pivot = cut.trajectory.pivot
    if pivot is None or pivot <= index:
        return cut
    return replace(cut, trajectory=replace(cut.trajectory, pivot=pivot + 1))  # one of the shared segments is two now


def _segment_at(trajectory: Trajectory, position: int) -> tuple[int, int]:
    """(segment, offset in it) of token `position`."""
    ends = np.cumsum([len(s.token_ids) for s in trajectory.segments])
    index = int(np.searchsorted(ends, position, side="right"))
    return index, position - int(ends[index] - len(trajectory.segments[index].token_ids))


def valued_nodes(trajectories: Sequence[Trajectory]) -> Iterator[Node]:
    """All nodes of all trees of a prompt, in the order of trajectories and segments; V_root is over all leaves."""
    leaves = [number for number, trajectory in enumerate(trajectories) if is_trainable(trajectory)]
    branches: dict[int, list[int]] = defaultdict(list)
    for number in leaves:
        if (parent := trajectories[number].parent) is not None:
            branches[parent].append(number)
    values: dict[tuple[int | None, int | None], float] = {}  # by (trajectory, end) of a node
    # The statistics module's mean rounds once: equal values are equal floats, and no advantage is noise.
    root = mean(trajectories[n].reward for n in leaves) if leaves else 0.0
    for number in leaves:
        own = trajectories[number]
        ends = {_first_own(trajectories[branch]) for branch in branches[number]}
        # What left its tree at the first token of all has no node before it: the prompt is its parent.
        before = values.get((own.parent, own.pivot), root)
        for first, last in pairwise(sorted({_first_own(own), *ends, len(own.segments)})):
            below = _leaves(trajectories, branches, number, last)
            value = mean(trajectories[n].reward for n in below)
            advantage = ((value - root) + (value - before)) / sqrt(len(below))
            yield Node(number, first, last, len(below), value, advantage)
            values[number, last] = before = value


def _leaves(trajectories: Sequence[Trajectory], branches: dict[int, list[int]], number: int, end: int) -> list[int]:
    """The leaves that hold the node of trajectory `number` which ends before segment `end`."""
    held = [branch for branch in branches[number] if _first_own(trajectories[branch]) >= end]
    return [number, *(leaf for branch in held for leaf in _leaves(trajectories, branches, branch, 0))]


def _first_own(trajectory: Trajectory) -> int:
    """The first segment it did not take over: behind the prompt, or behind its pivot."""
    return 1 if trajectory.pivot is None else trajectory.pivot
