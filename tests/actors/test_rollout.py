"""Episodes: what is recorded of them, what the policy was shown, and failures that are no verdict on the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from actors.failures import EnvironmentFailure
from actors.rollout import Rollout
from envs.base import Snapshot, TextEnv
from envs.trajectory import Role, Ticket, Trajectory, Verdict
from tests.builders import TICKET, Said, Scene, ScriptedEnv, ScriptedPolicy, token_ids_of


def turns(*answers: Said) -> Callable[[str], Said]:
    """The answers one after another, by the number of assistant turns in the context."""
    return lambda context: answers[context.count("<|im_start|>assistant") - 1]


async def play(
    scene: Scene,
    policy: ScriptedPolicy,
    make_env: Callable[[], TextEnv] | None = None,
    tokens_per_turn: int = 48,
    env_timeout_s: float = 10.0,
) -> Trajectory:
    limits = {"tokens_per_turn": tokens_per_turn, "env_timeout_s": env_timeout_s}
    rollout = await scene.rollout(policy, make_env, rollout=limits)
    return (await rollout.play(rollout.opening(), "solution/0")).trajectory


def decoded(scene: Scene, trajectory: Trajectory) -> str:
    return str(scene.chat._tokenizer.decode(token_ids_of(trajectory.segments)))


async def test_an_episode_is_recorded_turn_by_turn(scene: Scene) -> None:
    policy = ScriptedPolicy(turns("earn 0.25", "earn 0.5", "win 1"), version=3)
    trajectory = await play(scene, policy)
    roles = [Role.PROMPT, Role.ANSWER, Role.OBSERVATION, Role.ANSWER, Role.OBSERVATION, Role.ANSWER]
    assert [s.role for s in trajectory.segments] == roles
    assert (trajectory.verdict, trajectory.reward) == (Verdict.SOLVED, 1.75)
    assert trajectory.answer == "earn 0.25|earn 0.5|win 1"
    assert trajectory.cause == ""
    assert decoded(scene, trajectory) == (
        "<|im_start|>system\nSay win.<|im_end|>\n<|im_start|>user\nEpisode 11.<|im_end|>\n<|im_start|>assistant\n"
        "earn 0.25<|im_end|>\n<|im_start|>user\nTurn 1.<|im_end|>\n<|im_start|>assistant\n"
        "earn 0.5<|im_end|>\n<|im_start|>user\nTurn 2.<|im_end|>\n<|im_start|>assistant\nwin 1<|im_end|>"
    )


async def test_what_the_engine_said_of_its_tokens_is_kept_with_them(scene: Scene) -> None:
    policy = ScriptedPolicy(turns("earn 0.25", "win 1"), version=3)
    trajectory = await play(scene, policy)
    answers = [s for s in trajectory.segments if s.sampled]
    for segment, said in zip(answers, ["earn 0.25", "win 1"], strict=True):
        n = len(segment.token_ids)
        assert segment.token_ids.tolist() == policy.encode(said)
        np.testing.assert_array_equal(segment.behaviour_logprobs, -np.arange(1, n + 1, dtype=np.float32) / 128)
        assert segment.policy_versions.tolist() == [3] * n
    for segment in (s for s in trajectory.segments if not s.sampled):
        assert len(segment.behaviour_logprobs) == len(segment.policy_versions) == 0


async def test_the_policy_is_shown_exactly_the_tokens_before(scene: Scene) -> None:
    """Tokens in, tokens out: "u", "p" is not what the tokenizer makes of "up", and it is shown again as it was said."""
    u, p = ScriptedPolicy(turns()).encode("u")[0], ScriptedPolicy(turns()).encode("p")[0]
    policy = ScriptedPolicy(turns([u, p], "win 1"))
    trajectory = await play(scene, policy)
    assert trajectory.segments[1].token_ids.tolist() == [u, p]
    assert policy.requests[1].context_ids.tolist() == token_ids_of(trajectory.segments[:3])
    for request, before in zip(policy.requests, (1, 3), strict=True):
        assert request.context_ids.tolist() == token_ids_of(trajectory.segments[:before])


async def test_an_answer_cut_at_its_limit_is_closed_by_the_next_message(scene: Scene) -> None:
    policy = ScriptedPolicy(turns("earn 0.25 and more", "win 1"))
    trajectory = await play(scene, policy, tokens_per_turn=6)
    assert [r.max_tokens for r in policy.requests] == [6, 6]
    assert trajectory.segments[1].token_ids.tolist() == policy.encode("earn 0")[:-1]
    assert int(trajectory.segments[2].token_ids[0]) == scene.chat.eos_id
    assert "earn 0<|im_end|>\n<|im_start|>user" in decoded(scene, trajectory)


async def test_the_environments_last_words_are_not_recorded(scene: Scene) -> None:
    trajectory = await play(scene, ScriptedPolicy(turns(*["earn 1"] * 9)), lambda: ScriptedEnv(max_turns=2))
    assert [s.role for s in trajectory.segments][-2:] == [Role.OBSERVATION, Role.ANSWER]
    assert len(trajectory.segments) == 4
    assert (trajectory.verdict, trajectory.reward) == (Verdict.WRONG, 2.0)
    assert "Turn 2" not in decoded(scene, trajectory)


async def test_a_full_context_ends_the_episode_as_it_stands(scene: Scene) -> None:
    trajectory = await play(scene, ScriptedPolicy(turns("earn 0.25", "earn 0.5", None)))
    assert [s.role for s in trajectory.segments] == [Role.PROMPT, Role.ANSWER, Role.OBSERVATION, Role.ANSWER]
    assert (trajectory.verdict, trajectory.reward) == (Verdict.WRONG, 0.75)
    assert trajectory.answer == "earn 0.25|earn 0.5"


async def test_an_episode_cut_by_a_full_context_earns_what_its_end_does(scene: Scene) -> None:
    env = ScriptedEnv()
    env.closing = 0.5
    policy = ScriptedPolicy(lambda context: "earn 0.25" if "earn" not in context else None)
    trajectory = await play(scene, policy, lambda: env)
    assert (trajectory.reward, trajectory.verdict) == (0.75, Verdict.WRONG)


async def test_a_prompt_that_fills_the_context_leaves_no_answer(scene: Scene) -> None:
    trajectory = await play(scene, ScriptedPolicy(turns("win 1"), max_model_len=20))
    assert [s.role for s in trajectory.segments] == [Role.PROMPT]
    assert (trajectory.verdict, trajectory.reward) == (Verdict.UNPARSABLE, 0.0)


async def test_an_environment_that_raises_failed_and_was_not_wrong(scene: Scene) -> None:
    trajectory = await play(scene, ScriptedPolicy(turns("earn 0.25", "raise")))
    assert (trajectory.verdict, trajectory.reward) == (Verdict.FAILED, 0.0)
    assert trajectory.cause == "scripted raised RuntimeError: boom"
    assert [s.role for s in trajectory.segments] == [Role.PROMPT, Role.ANSWER, Role.OBSERVATION, Role.ANSWER]


async def test_a_judge_that_breaks_failed_and_was_not_wrong(scene: Scene) -> None:
    trajectory = await play(scene, ScriptedPolicy(turns("earn 0.25", "break")))
    assert (trajectory.verdict, trajectory.reward, trajectory.cause) == (Verdict.FAILED, 0.0, "the judge broke")
    assert [s.role for s in trajectory.segments] == [Role.PROMPT, Role.ANSWER, Role.OBSERVATION, Role.ANSWER]


async def test_an_environment_that_hangs_failed_within_its_time(scene: Scene) -> None:
    trajectory = await play(scene, ScriptedPolicy(turns("earn 0.25", "hang")), env_timeout_s=0.05)
    assert (trajectory.verdict, trajectory.reward) == (Verdict.FAILED, 0.0)
    assert trajectory.cause == "scripted did not answer within 0.05 s (rollout.env_timeout_s); its worker was killed"


class Unborn(ScriptedEnv):
    def reset(self, **_: object) -> tuple[str, dict[str, object]]:
        raise OSError("no such map")

    def restore(self, snapshot: Snapshot) -> None:
        raise OSError("no such map any more")


async def test_an_episode_that_cannot_begin_failed(scene: Scene) -> None:
    envs = iter([ScriptedEnv(), Unborn()])
    trajectory = await play(scene, ScriptedPolicy(turns("win 1")), lambda: next(envs))
    assert (trajectory.verdict, trajectory.cause) == (Verdict.FAILED, "scripted raised OSError: no such map any more")


async def test_a_ticket_whose_environment_cannot_begin_says_why(scene: Scene) -> None:
    with pytest.raises(EnvironmentFailure, match="scripted raised OSError: no such map"):
        await scene.rollout(ScriptedPolicy(turns()), Unborn)


async def test_each_play_has_an_environment_of_its_own_at_the_tickets_episode(scene: Scene) -> None:
    policy = ScriptedPolicy(turns("earn 1", "win 1"))
    rollout = await scene.rollout(policy)
    one, two = [(await rollout.play(rollout.opening(), f"solution/{i}")).trajectory for i in range(2)]
    assert one.reward == two.reward == 2.0
    assert one.answer == two.answer == "earn 1|win 1"
    assert "Episode 11." in policy.requests[0].context
    assert rollout.env_steps == 4


async def test_the_sketch_of_an_episode_is_recorded_also_when_it_fails(scene: Scene) -> None:
    rollout = await scene.rollout(ScriptedPolicy(turns("raise")))
    assert (await rollout.play(rollout.opening(), "x", sketch=2)).trajectory.sketch == 2
    assert (await rollout.play(rollout.opening(), "x")).trajectory.sketch is None


async def seeds(scene: Scene, ticket: Ticket, run_seed: int) -> list[int]:
    policy = ScriptedPolicy(turns("earn 1", "win 1"))
    rollout: Rollout = await scene.rollout(policy, ticket=ticket, run={"seed": run_seed})
    for i in range(3):
        await rollout.play(rollout.opening(), f"solution/{i}")
    await rollout.sample(rollout.opening(), 4, "sketch/0")
    return [r.seed for r in policy.requests]


async def test_seeds_follow_from_run_seed_ticket_and_purpose_alone(scene: Scene) -> None:
    first = await seeds(scene, TICKET, 0)
    assert len(set(first)) == len(first) == 7
    assert await seeds(scene, replace(TICKET, attempt=2), 0) == first
    assert not set(await seeds(scene, replace(TICKET, index=6), 0)) & set(first)
    assert not set(await seeds(scene, TICKET, 1)) & set(first)
    assert all(0 <= seed < 2**31 for seed in first)


async def test_the_guided_frame_asks_to_follow_what_is_put_into_it(scene: Scene) -> None:
    rollout = await scene.rollout(ScriptedPolicy(turns()))
    sketch = scene.chat._encode("plan up")
    expected = rollout.opening(" Follow:\nplan up\nnow.").tolist()
    assert (await rollout.guided_frame()).around(sketch).tolist() == expected
