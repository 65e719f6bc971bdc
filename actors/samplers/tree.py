"""Trees of solutions, grown by forks at unlikely tokens; a token's advantage comes from subtrees (arXiv 2506.11902)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from actors.episode import Episode
from actors.rollout import Rollout
from actors.samplers.tree_values import cut_at, least_likely, valued_nodes
from configs.samplers import TreeSettings
from envs.trajectory import Credit, Group, GroupStats, Row, Stream, Trajectory


class TreeSampler:
    """`trees` solutions of a prompt, each grown for `rounds` rounds by `branches` continuations of `forks` places."""

    def __init__(self, settings: TreeSettings) -> None:
        self._settings = settings

    async def sample_group(self, rollout: Rollout) -> Group:
        rollout.keep_turns = True
        trees = await asyncio.gather(*(self._grow(rollout, tree) for tree in range(self._settings.trees)))
        trajectories = tuple(trajectory for tree in _numbered(trees) for trajectory in tree)
        stats = GroupStats(env_steps=rollout.env_steps)
        return Group(rollout.ticket, "tree", trajectories, tuple(tree_rows(trajectories)), stats)

    async def _grow(self, rollout: Rollout, tree: int) -> list[Episode]:
        """One tree; parents are numbers inside it."""
        episodes = [await rollout.play(rollout.opening(), f"tree/{tree}")]
        for grown in range(self._settings.rounds):
            forks = least_likely([episode.trajectory for episode in episodes], self._settings.forks)
            episodes, pivots = cut_at(episodes, forks)
            episodes += await asyncio.gather(
                *(
                    rollout.branch(episodes[fork.trajectory], fork.trajectory, pivot, f"fork/{tree}/{grown}/{f}/{b}")
                    for f, (fork, pivot) in enumerate(zip(forks, pivots, strict=True))
                    for b in range(self._settings.branches)
                )
            )
        return episodes


def _numbered(trees: Sequence[Sequence[Episode]]) -> Iterator[list[Trajectory]]:
    """The trees one after another, their parents as numbers in all of them."""
    before = 0
    for tree in trees:
        trajectories = [episode.trajectory for episode in tree]
        yield [t if t.parent is None else replace(t, parent=t.parent + before) for t in trajectories]
        before += len(tree)


def tree_rows(trajectories: Sequence[Trajectory]) -> Iterator[Row]:
    """A row a leaf, with a credit for each node that it sampled itself: every token is trained once."""
    for number, nodes in groupby(valued_nodes(trajectories), key=lambda node: node.trajectory):
        credits = tuple(
            Credit(node.first, node.last, Stream.SOLUTION, "tree", node.value, advantage=node.advantage)
            for node in nodes
        )
        yield Row(number, credits[0].first, credits)
