"""DDE with SESA at the root: lineage from sketch to branch, the streams of one prompt, where branches are trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from actors.rollout import Rollout
from actors.samplers.recoverability import Recoverability
from configs.schema import RunConfig
from envs.trajectory import Credit, Group, Role, Row, Stream
from learner.rows import credit_advantages, training_rows
from tests.actors.dde_groups import sample
from tests.builders import Said, Scene, token_ids_of

SKETCHED: dict[str, Said] = {
    "sketch/0/0": "plan a",
    "sketch/1/0": "plan b",
    "expansion/0/0/1": "earn 0.25",
    "expansion/0/0/3": "lose 0",
    "expansion/1/0/1": "win 1",
    "branch/1/0/3": "win 1",
    "branch/1/1/3": "lose 0.5",
}


async def composed(scene: Scene, train_on: str, **sesa: Any) -> tuple[Group, Rollout]:
    root = {"name": "sesa", "sketches": 2, "train_on": train_on, **sesa}
    group, rollout, _ = await sample(scene, SKETCHED, Recoverability((1000.0,), -300.0), root=root, branches=2)
    return group, rollout


async def test_sketch_solution_pivot_and_branch_can_be_read_off_the_record(scene: Scene) -> None:
    group, _ = await composed(scene, "guided")
    sketches, _, _, won, lost = group.trajectories
    drafted = [s for s in sketches.segments if s.role is Role.SKETCH]
    for branch in (won, lost):
        assert (branch.parent, branch.pivot, branch.sketch) == (1, 3, 0)
        parent = group.trajectories[branch.parent or 0]
        assert parent.sketch == branch.sketch
        assert token_ids_of(branch.segments[:3]) == token_ids_of(parent.segments[:3])
        # The guided prompt holds the sketch token by token.
        guided, words = branch.segments[0].token_ids.tolist(), drafted[0].token_ids.tolist()[:-1]
        assert any(guided[i : i + len(words)] == words for i in range(len(guided)))
    assert (won.reward, lost.reward) == (1.25, 0.75)
    assert group.sampler == "dde"
    assert (group.stats.sketches, group.stats.env_steps) == (2, 3 + 2)


async def test_three_streams_of_one_prompt(scene: Scene) -> None:
    """Solutions 0.25 and 1; a sketch earns what its expansion did, not what branches did; branches 1.25 and 0.75."""
    group, _ = await composed(scene, "guided")
    first, second = (i for i, s in enumerate(group.trajectories[0].segments) if s.role is Role.SKETCH)
    assert sorted((row for row in group.rows), key=lambda row: row.trajectory) == [
        Row(
            0,
            1,
            (
                Credit(first, first + 1, Stream.SKETCH, "sketches", 0.25),
                Credit(second, second + 1, Stream.SKETCH, "sketches", 1.0),
            ),
        ),
        Row(1, 1, (Credit(1, 4, Stream.SOLUTION, "guided", 0.25),)),
        Row(2, 1, (Credit(1, 2, Stream.SOLUTION, "guided", 1.0),)),
        Row(3, 3, (Credit(3, 4, Stream.BRANCH, "branch/1", 1.25),)),
        Row(4, 3, (Credit(3, 4, Stream.BRANCH, "branch/1", 0.75),)),
    ]


async def test_branches_of_a_plainly_trained_solution_are_trained_plainly(scene: Scene) -> None:
    """Behind the plain prompt and what they took over, without the sketch."""
    group, rollout = await composed(scene, "plain", plain_importance_cap=2.0)
    rows = {row.trajectory: row for row in group.rows}
    assert sorted(rows) == [1, 2, 3, 4]
    for number in (3, 4):
        row, segments = rows[number], group.trajectories[number].segments
        assert row.context_ids is not None
        assert row.context_ids.tolist() == rollout.opening().tolist() + token_ids_of(segments[1:3])
        assert (row.first, row.importance_cap) == (3, 2.0)
        assert row.credits[0].baseline == "branch/1"
    config = RunConfig.model_validate({"grpo": {"normalize_std": False}})
    trained = training_rows([group], config)[-1]
    assert trained.token_ids.tolist() == rollout.opening().tolist() + token_ids_of(group.trajectories[4].segments[1:])
    assert len(trained.targets) == len(group.trajectories[4].segments[3].token_ids)
    assert not trained.own_context


async def test_branches_of_a_solution_trained_twice_are_trained_twice(scene: Scene) -> None:
    group, _ = await composed(scene, "both", plain_weight=0.5, guided_weight=2.0)
    branches = [row for row in group.rows if row.credits[0].stream is Stream.BRANCH]
    assert [(row.trajectory, row.context_ids is None, row.credits[0].weight) for row in branches] == [
        *[(3, False, 0.5), (3, True, 2.0)],
        *[(4, False, 0.5), (4, True, 2.0)],
    ]
    advantages = credit_advantages([group], RunConfig.model_validate({"grpo": {"normalize_std": False}}))
    got = [advantages[0, group.rows.index(row), 0] for row in branches]
    np.testing.assert_allclose(got, [0.25, 0.25, -0.25, -0.25])


async def test_a_plain_solution_in_the_place_of_a_rejected_sketch_branches_too(scene: Scene) -> None:
    """The second sketch repeats the first, so the second solution is a plain one and its branches are, too."""
    said: dict[str, Said] = {"sketch/0/0": "plan a", "sketch/1/0": "plan a"}
    root = {"name": "sesa", "sketches": 2, "train_on": "both"}
    group, rollout, _ = await sample(scene, said, root=root, branches=1)
    _, guided, plain, of_guided, of_plain = group.trajectories
    assert [t.sketch for t in (guided, plain, of_guided, of_plain)] == [0, None, 0, None]
    assert [t.parent for t in (of_guided, of_plain)] == [1, 2]
    assert of_plain.segments[0].token_ids.tolist() == rollout.opening().tolist()
    contexts = [(row.trajectory, row.context_ids is None) for row in group.rows if row.trajectory in (3, 4)]
    assert contexts == [(3, False), (3, True), (4, True)]
