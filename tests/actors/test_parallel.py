"""Plain GRPO's groups: one row a solution, one baseline, failed episodes in neither."""

from __future__ import annotations

from collections.abc import Mapping

from actors.samplers.build import build_sampler
from actors.samplers.parallel import ParallelSampler
from configs.samplers import ParallelSettings
from envs.codec import encode_group
from envs.trajectory import Credit, Group, GroupStats, Stream, Verdict
from tests.builders import TICKET, Said, Scene, ScriptedPolicy, plan, token_ids_of


async def sample(scene: Scene, said: Mapping[str, Said], size: int) -> Group:
    rollout = await scene.rollout(ScriptedPolicy(lambda _: None, plan(said)))
    group = await ParallelSampler(size).sample_group(rollout)
    encode_group(group)
    return group


async def test_each_solution_is_a_row_compared_with_all_others(scene: Scene) -> None:
    group = await sample(
        scene,
        {"solution/0/1": "win 1", "solution/1/1": "earn 0.5", "solution/1/3": "lose -0.25", "solution/2/1": "lose 0"},
        size=3,
    )
    assert (group.ticket, group.sampler) == (TICKET, "parallel")
    assert [t.reward for t in group.trajectories] == [1.0, 0.25, 0.0]
    assert [(row.trajectory, row.first, row.context_ids, row.importance_cap) for row in group.rows] == [
        (0, 1, None, None),
        (1, 1, None, None),
        (2, 1, None, None),
    ]
    assert [row.credits for row in group.rows] == [
        (Credit(1, 2, Stream.SOLUTION, "solutions", 1.0, 1.0),),
        (Credit(1, 4, Stream.SOLUTION, "solutions", 0.25, 1.0),),
        (Credit(1, 2, Stream.SOLUTION, "solutions", 0.0, 1.0),),
    ]
    assert group.stats == GroupStats(env_steps=4)
    assert group.has_signal


async def test_all_start_from_the_same_plain_prompt(scene: Scene) -> None:
    policy = ScriptedPolicy(lambda _: "win 1")
    rollout = await scene.rollout(policy)
    group = await ParallelSampler(3).sample_group(rollout)
    opening = rollout.opening().tolist()
    assert [r.context_ids.tolist() for r in policy.requests] == [opening] * 3
    assert [token_ids_of(t.segments[:1]) for t in group.trajectories] == [opening] * 3
    assert len({r.seed for r in policy.requests}) == 3
    assert not group.has_signal


async def test_failed_and_unanswered_episodes_are_in_no_row_and_no_baseline(scene: Scene) -> None:
    said: dict[str, Said] = {
        "solution/0/1": "raise",
        "solution/1/1": "win 1",
        "solution/2/1": None,
        "solution/3/1": "lose 0",
    }
    group = await sample(scene, said, size=4)
    assert [t.verdict for t in group.trajectories] == [
        *(Verdict.FAILED, Verdict.SOLVED, Verdict.UNPARSABLE, Verdict.WRONG),
    ]
    assert [row.trajectory for row in group.rows] == [1, 3]
    assert [c.reward for row in group.rows for c in row.credits] == [1.0, 0.0]
    assert group.stats.env_steps == 2


async def test_a_group_that_failed_as_a_whole_has_no_rows(scene: Scene) -> None:
    group = await sample(scene, {"solution/0/1": "raise", "solution/1/1": "raise"}, size=2)
    assert group.rows == ()
    assert {t.cause for t in group.trajectories} == {"scripted raised RuntimeError: boom"}


async def test_the_sampler_of_a_config_takes_its_size(scene: Scene) -> None:
    sampler = build_sampler(ParallelSettings(group_size=5))
    group = await sampler.sample_group(await scene.rollout(ScriptedPolicy(lambda _: "win 1")))
    assert len(group.trajectories) == 5
