"""DDE's groups: which solutions are taken up again and where, lineage, rows, baselines, what is learned of it, caps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.samplers.recoverability import Recoverability
from configs.schema import RunConfig
from envs.base import TextEnv
from envs.codec import encode_group
from envs.trajectory import Credit, Group, PivotTrial, Role, Row, Stream, Ticket, Verdict
from learner.rows import credit_advantages, training_rows
from tests.actors.dde_groups import DEEP, EARLY, PLAYED, SHALLOW, sample, sampler_of
from tests.builders import TICKET, Said, Scene, ScriptedPolicy, token_ids_of
from tests.envs.cases import env_of

# --- the worked example ----------------------------------------------------------------------------------------------


async def grown(scene: Scene) -> Group:
    """The failed solution is taken up at its last turn, three times: won, lost, and failed."""
    branches: dict[str, Said] = {"branch/1/0/5": "win 1", "branch/1/1/5": "lose -0.25", "branch/1/2/5": "raise"}
    return (await sample(scene, {**PLAYED, **branches}, DEEP))[0]


async def test_a_failed_solution_is_taken_up_again_at_its_pivot(scene: Scene) -> None:
    group = await grown(scene)
    assert (group.ticket, group.sampler) == (TICKET, "dde")
    solutions, branches = group.trajectories[:3], group.trajectories[3:]
    assert [t.verdict for t in solutions] == [Verdict.SOLVED, Verdict.WRONG, Verdict.FAILED]
    assert [(t.parent, t.pivot) for t in solutions] == [(None, None)] * 3
    assert [(t.parent, t.pivot) for t in branches] == [(1, 5)] * 3
    assert [t.verdict for t in branches] == [Verdict.SOLVED, Verdict.WRONG, Verdict.FAILED]
    assert [t.reward for t in branches] == [1.75, 0.5, 0.0]
    assert [t.answer for t in branches[:2]] == ["earn 0.25|earn 0.5|win 1", "earn 0.25|earn 0.5|lose -0.25"]
    for branch in branches:
        assert token_ids_of(branch.segments[:5]) == token_ids_of(solutions[1].segments[:5])


async def test_branches_are_compared_with_each_other_and_train_what_is_their_own(scene: Scene) -> None:
    group = await grown(scene)
    assert group.rows == (
        Row(0, 1, (Credit(1, 2, Stream.SOLUTION, "solutions", 1.0),)),
        Row(1, 1, (Credit(1, 6, Stream.SOLUTION, "solutions", 0.75),)),
        Row(3, 5, (Credit(5, 6, Stream.BRANCH, "branch/1", 1.75),)),
        Row(4, 5, (Credit(5, 6, Stream.BRANCH, "branch/1", 0.5),)),
    )
    config = RunConfig.model_validate({"grpo": {"normalize_std": False}})
    # 1 and 0.75 against 0.875; 1.75 and 0.5 against 1.125: the parent and the failed branch are in no mean of branches.
    assert list(credit_advantages([group], config).values()) == pytest.approx([0.125, -0.125, 0.625, -0.625])
    _, parent, won, _ = training_rows([group], config)
    assert token_ids_of(group.trajectories[3].segments) == won.token_ids.tolist()
    assert won.targets.tolist() == list(range(len(won.token_ids) - 6, len(won.token_ids)))  # "win 1" and its end
    assert len(parent.targets) == 10 + 9 + 7
    assert won.own_context


async def test_what_came_of_a_pivot_is_told(scene: Scene) -> None:
    group = await grown(scene)
    depth = (10 + 9) / 26
    assert group.pivots == (PivotTrial(1, 5, depth, (depth,), branches=2, solved=1, gain=1.125 - 0.75),)
    assert group.stats.env_steps == 1 + 3 + 0 + 2


async def test_the_model_decides_where(scene: Scene) -> None:
    group, _, policy = await sample(scene, {**PLAYED, "branch/1/0/3": "win 2"}, SHALLOW)
    assert group.pivots[0].pivot == 3
    assert [(t.pivot, t.reward) for t in group.trajectories[3:]] == [(3, 2.25), (3, 0.25), (3, 0.25)]
    assert [row.first for row in group.rows] == [1, 1, 3, 3, 3]
    assert group.pivots[0].features == (10 / 26,)
    seeds = [request.seed for request in policy.requests]
    assert len(set(seeds)) == len(seeds)


async def test_features_are_recorded_as_the_model_would_see_them(scene: Scene) -> None:
    model = Recoverability((1000.0, 0.0, 0.0), -600.0)
    group, *_ = await sample(scene, PLAYED, model, features="depth+surprise+progress")
    # The nine tokens before have log-probs -1/128 to -9/128; 0.75 was earned.
    assert group.pivots[0].features == pytest.approx((19 / 26, 5 / 128, 0.75))


# --- which ----------------------------------------------------------------------------------------------------------


async def test_unparsable_solutions_are_resampled_and_failed_and_silent_ones_are_not(scene: Scene) -> None:
    said: dict[str, Said] = {"solution/0/1": "what?", "solution/1/1": "break", "solution/2/1": None}
    group, *_ = await sample(scene, said, max_turns=1)
    verdicts = [Verdict.UNPARSABLE, Verdict.FAILED, Verdict.UNPARSABLE]
    assert [t.verdict for t in group.trajectories[:3]] == verdicts
    assert [trial.parent for trial in group.pivots] == [0]
    assert {t.parent for t in group.trajectories[3:]} == {0}


async def test_without_a_failed_solution_the_group_is_the_roots(scene: Scene) -> None:
    group, rollout, policy = await sample(scene, {}, otherwise="win 1")
    assert len(group.trajectories) == len(group.rows) == len(policy.requests) == 3
    assert (group.pivots, group.stats.env_steps) == ((), 3)
    assert not rollout.keep_turns


async def test_each_failed_solution_has_its_own_pivot_and_baseline(scene: Scene) -> None:
    won: dict[str, Said] = {"branch/2/1/1": "win 1"}
    group, *_ = await sample(scene, won, root={"name": "parallel", "group_size": 4}, branches=2)
    assert [t.parent for t in group.trajectories] == [None] * 4 + [0, 0, 1, 1, 2, 2, 3, 3]
    branch_rows = [row for row in group.rows if row.credits[0].stream is Stream.BRANCH]
    assert [(row.trajectory, row.credits[0].baseline) for row in branch_rows] == [
        (4 + i, f"branch/{i // 2}") for i in range(8)
    ]
    assert [trial.solved for trial in group.pivots] == [0, 0, 1, 0]
    assert group.has_signal  # of the branches alone: all solutions earned the same


async def test_branches_that_all_failed_say_nothing(scene: Scene) -> None:
    group, *_ = await sample(scene, {f"branch/0/{i}/1": "raise" for i in range(3)} | {"solution/1/1": "win 1"})
    assert group.pivots[0] == PivotTrial(0, 1, 0.0, (0.0,), branches=0, solved=0, gain=0.0)
    assert {row.trajectory for row in group.rows if row.credits[0].stream is Stream.BRANCH} == {6, 7, 8}


# --- inside an answer ------------------------------------------------------------------------------------------------


async def test_a_pivot_inside_an_answer_makes_two_segments_of_it(scene: Scene) -> None:
    """`wi 1` is unreadable; behind `wi`, 2 of 5 tokens, it can still be won."""
    said: dict[str, Said] = {"solution/0/1": "wi 1", "branch/0/0/2": "n 3", "branch/0/1/2": "n 1"}
    group, _, policy = await sample(
        scene, said, SHALLOW, max_turns=1, otherwise="win 1", candidates="tokens", segment_tokens=2, branches=2
    )
    parent, first = group.trajectories[0], group.trajectories[3]
    assert [len(s.token_ids) for s in parent.segments[1:]] == [2, 3]
    assert [s.role for s in first.segments] == [Role.PROMPT, Role.ANSWER, Role.ANSWER]
    assert (first.parent, first.pivot, first.answer, first.reward) == (0, 2, "win 3", 3.0)
    assert token_ids_of(first.segments[1:]) == policy.encode("wi")[:-1] + policy.encode("n 3")
    assert group.rows[0] == Row(0, 1, (Credit(1, 3, Stream.SOLUTION, "solutions", 0.0),))  # both parts, as before
    assert group.rows[1] == Row(1, 1, (Credit(1, 2, Stream.SOLUTION, "solutions", 1.0),))
    assert group.rows[3] == Row(3, 2, (Credit(2, 3, Stream.BRANCH, "branch/0", 3.0),))
    assert group.pivots[0] == PivotTrial(0, 2, 0.4, (0.4,), branches=2, solved=2, gain=2.0)


async def test_a_cut_answer_is_trained_like_a_whole_one(scene: Scene) -> None:
    """What the learner makes of the solutions does not change with where their pivots are."""
    config = RunConfig.model_validate({"grpo": {"normalize_std": False}})
    at_turns, *_ = await sample(scene, PLAYED, DEEP)
    inside, *_ = await sample(scene, PLAYED, EARLY, candidates="tokens", segment_tokens=6)
    assert len(inside.trajectories[1].segments) == len(at_turns.trajectories[1].segments) + 1
    for one, other in zip(training_rows([at_turns], config)[:2], training_rows([inside], config)[:2], strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.targets.tolist() == other.targets.tolist()
        assert one.behaviour_logprobs.tolist() == other.behaviour_logprobs.tolist()
        assert one.advantages.tolist() == other.advantages.tolist()


async def test_a_cut_in_the_middle_of_an_episode_leaves_the_turns_behind_it(scene: Scene) -> None:
    """`earn 0.25` becomes `earn 0` and `.25`, and is gone on with as `earn 0.5`."""
    said: dict[str, Said] = {**PLAYED, "branch/1/0/2": ".5", "branch/1/0/4": "win 1"}
    group, _, policy = await sample(scene, said, EARLY, candidates="tokens", segment_tokens=6, branches=1)
    parent, branch = group.trajectories[1], group.trajectories[3]
    assert [len(s.token_ids) for s in parent.segments if s.sampled] == [6, 4, 9, 7]
    assert (branch.pivot, branch.answer, branch.reward) == (2, "earn 0.5|win 1", 1.5)
    assert branch.sampled_tokens == len(policy.encode(".5")) + len(policy.encode("win 1"))
    assert group.rows[1].credits == (Credit(1, 7, Stream.SOLUTION, "solutions", 0.75),)
    assert group.rows[2].credits == (Credit(2, 5, Stream.BRANCH, "branch/1", 1.5),)
    assert group.pivots == (PivotTrial(1, 2, 6 / 26, (6 / 26,), branches=1, solved=1, gain=0.75),)


# --- rules -----------------------------------------------------------------------------------------------------------


async def test_the_root_rule_resamples_from_the_prompt(scene: Scene) -> None:
    group, rollout, policy = await sample(scene, PLAYED, rule="root")
    assert [(trial.pivot, trial.depth) for trial in group.pivots] == [(1, 0.0)]
    opening = rollout.opening().tolist()
    assert [r.context_ids.tolist() for r in policy.requests[-3:]] == [opening] * 3


async def test_the_random_rule_takes_any_place_but_the_root(scene: Scene) -> None:
    pivots = set()
    for index in range(12):
        policy = ScriptedPolicy(lambda _: "earn 0.5")
        rollout = await scene.rollout(policy, ticket=Ticket(index, "scripted", 11))
        group = await sampler_of(rule="random", branches=1, max_pivots=1).sample_group(rollout)
        pivots.add(group.pivots[0].pivot)
    assert pivots == {3, 5, 7, 9}


async def test_the_oracle_takes_the_last_turn_from_which_the_lake_can_still_be_crossed(
    scene: Scene, tmp_path: Path
) -> None:
    """A policy that only bumps into the edge: with L moves needed, six turns can be wasted down to L left."""
    seen = set()
    for seed in range(40):
        env: TextEnv = env_of("frozen_lake", tmp_path)
        env.reset(seed=seed)
        needed, before = env.optimal_length(), env.state
        for bump in ("Left", "Up", "Right", "Down"):
            env.reset(seed=seed)
            env.step(f"<answer>{bump}</answer>")
            if env.state == before and not env.lost:
                break
        else:
            continue
        assert needed is not None
        policy = ScriptedPolicy(lambda _, bump=bump: f"<answer>{bump}</answer>")  # type: ignore[misc]
        rollout = await scene.rollout(
            policy, lambda: env_of("frozen_lake", tmp_path), ticket=Ticket(0, "frozen_lake", seed)
        )
        group = await sampler_of(rule="oracle", branches=1, max_pivots=1).sample_group(rollout)
        turns = env.settings.max_turns
        assert group.pivots[0].pivot == 1 + 2 * (turns - needed)
        seen.add(needed)
    assert len(seen) > 1


async def test_an_oracle_that_knows_nothing_takes_the_root(scene: Scene) -> None:
    """The scripted environment has no solver: asking it raises."""
    group, *_ = await sample(scene, PLAYED, rule="oracle")
    assert [(trial.parent, trial.pivot) for trial in group.pivots] == [(1, 1)]


async def test_rules_that_do_not_learn_still_tell_what_came_of_their_pivots(scene: Scene) -> None:
    for rule in ("random", "root", "oracle"):
        group, *_ = await sample(scene, PLAYED, rule=rule)
        assert len(group.pivots) == 1
        assert group.pivots[0].branches == 3


# --- seeds -----------------------------------------------------------------------------------------------------------


async def test_a_ticket_gives_the_same_group_again(scene: Scene) -> None:
    knobs: dict[str, Any] = {"candidates": "tokens", "segment_tokens": 1}
    once, again = [(await sample(scene, PLAYED, **knobs))[0] for _ in range(2)]
    assert encode_group(once) == encode_group(again)


async def test_pivots_differ_between_tickets_and_solutions(scene: Scene) -> None:
    knobs: dict[str, Any] = {"candidates": "tokens", "segment_tokens": 1, "branches": 1}
    depths = []
    for index in range(3):
        rollout = await scene.rollout(ScriptedPolicy(lambda _: "earn 0.5"), ticket=Ticket(index, "scripted", 11))
        group = await sampler_of(**knobs).sample_group(rollout)
        depths += [trial.depth for trial in group.pivots]
    assert len(depths) == 9
    assert len(set(depths)) > 5


# --- caps ------------------------------------------------------------------------------------------------------------


async def test_the_first_failed_solutions_count(scene: Scene) -> None:
    group, *_ = await sample(scene, {"solution/0/1": "win 1"}, root={"name": "parallel", "group_size": 5}, max_pivots=2)
    assert [trial.parent for trial in group.pivots] == [1, 2]


@pytest.mark.parametrize(("cap", "pivots"), [(20, 0), (21, 1), (41, 1), (42, 2), (62, 2), (63, 3), (1000, 3)])
async def test_pivots_are_made_as_long_as_they_fit(scene: Scene, cap: int, pivots: int) -> None:
    """Three lost solutions of 7 tokens; three branches of each cost 21 from the root."""
    group, *_ = await sample(scene, {}, max_extra_tokens=cap)
    assert [trial.parent for trial in group.pivots] == list(range(pivots))
    assert sum(t.sampled_tokens for t in group.trajectories[3:]) == 21 * pivots


async def test_what_branches_cost_counts_not_what_they_were_thought_to(scene: Scene) -> None:
    """The first pivot's branches are 10 tokens long instead of 7: 30 are spent, and 21 more make 51."""
    longer: dict[str, Said] = {f"branch/0/{i}/1": "lose 0.00" for i in range(3)}
    for cap, pivots in ((50, 1), (51, 2)):
        group, *_ = await sample(scene, longer, max_extra_tokens=cap)
        assert len(group.pivots) == pivots


async def test_only_what_lies_behind_the_pivot_counts(scene: Scene) -> None:
    """Of the parent's 26 tokens 7 lie behind its last turn."""
    for cap, pivots in ((20, 0), (21, 1)):
        group, *_ = await sample(scene, PLAYED, DEEP, max_extra_tokens=cap)
        assert len(group.pivots) == pivots


async def test_a_solution_without_a_pivot_is_left_as_it_was(scene: Scene) -> None:
    knobs: dict[str, Any] = {"candidates": "tokens", "segment_tokens": 4}
    group, *_ = await sample(scene, PLAYED, SHALLOW, max_extra_tokens=1, **knobs)
    assert len(group.trajectories[1].segments) == 6
    assert [row.credits[0].last for row in group.rows] == [2, 6]
