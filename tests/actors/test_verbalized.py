"""Several candidates in one answer, by hand: where it is cut, what each is judged by, and which tokens earn what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from pydantic import ValidationError

from actors.chat import Chat
from actors.samplers.build import build_sampler
from actors.samplers.verbalized import Candidate, candidates
from configs.environments import PathExplorationSettings
from configs.samplers import VerbalizedSettings
from configs.schema import RunConfig
from envs.base import TextEnv
from envs.codec import encode_group
from envs.path_exploration.env import PathExploration
from envs.protocol import read_answer
from envs.trajectory import Credit, GroupStats, Ints, Role, Stream, Verdict
from learner.rows import training_rows
from tests.builders import Said, Sampled, Scene, ScriptedEnv, ScriptedPolicy, ints, plan, token_ids_of

OPENED = "<|im_start|>system\nSay win.<|im_end|>\n<|im_start|>user\nEpisode 11."
ASKED = "<|im_end|>\n<|im_start|>assistant\n"


class Tagged(ScriptedEnv):
    """One turn; does what the last `<answer>...</answer>` says."""

    def __init__(self) -> None:
        super().__init__(max_turns=1)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return super().step(read_answer(action, "answer") or action)


def tagged(*answers: str) -> str:
    return " or ".join(f"<answer>{answer}</answer>" for answer in answers)


class Verbalized(Sampled):
    def trained(self) -> list[list[str]]:
        """What the learner trains of each row, credit by credit."""
        rows = training_rows([self.group], self.rollout._shared.config)
        return [
            [self.text(row.token_ids[row.targets[row.sequences == c]]) for c in sorted(set(row.sequences.tolist()))]
            for row in rows
        ]

    def text(self, token_ids: Ints) -> str:
        return str(self.rollout.chat._tokenizer.decode(token_ids.tolist()))

    def parts(self, trajectory: int) -> list[str]:
        """The sampled segments of a trajectory."""
        return [self.text(s.token_ids) for s in self.group.trajectories[trajectory].segments if s.sampled]

    @property
    def rewards(self) -> list[list[float]]:
        return [[credit.reward for credit in row.credits] for row in self.group.rows]


async def sample(
    scene: Scene,
    *answers: Said,
    asked: int = 2,
    make_env: Callable[[], TextEnv] = Tagged,
    tokens_per_turn: int = 400,
) -> Verbalized:
    policy = ScriptedPolicy(lambda _: None, plan({f"response/{i}/1": said for i, said in enumerate(answers)}))
    rollout = await scene.rollout(policy, make_env, rollout={"tokens_per_turn": tokens_per_turn})
    settings = VerbalizedSettings(responses=len(answers), candidates=asked)
    group = await build_sampler(settings).sample_group(rollout)
    encode_group(group)
    assert group.sampled_tokens == sum(len(c.token_ids) for c in policy.completions.values())
    return Verbalized(group, rollout, policy)


# --- one answer ------------------------------------------------------------------------------------------------------


async def test_the_prompt_asks_for_as_many_answers_as_are_set(scene: Scene) -> None:
    sampled = await sample(scene, tagged("win 1"), tagged("lose 0"), asked=3, tokens_per_turn=99)
    assert {r.context for r in sampled.policy.requests} == {
        f"{OPENED}\nGive 3 different answers, each as <answer>...</answer>.{ASKED}"
    }
    assert [r.max_tokens for r in sampled.policy.requests] == [99, 99]


async def test_an_answer_is_cut_behind_each_closing_tag(scene: Scene) -> None:
    sampled = await sample(scene, "Try " + tagged("win 1", "lose 0", "lose 0.25") + ". Done.", asked=3)
    group = sampled.group
    parts = [
        "Try <answer>win 1</answer>",
        " or <answer>lose 0</answer>",
        " or <answer>lose 0.25</answer>. Done.<|im_end|>",
    ]
    assert [sampled.parts(k) for k in range(3)] == [parts[:1], parts[:2], parts]
    assert [(t.parent, t.pivot) for t in group.trajectories] == [(None, None), (0, 2), (1, 3)]
    assert [(t.verdict, t.reward, t.answer) for t in group.trajectories] == [
        *((Verdict.SOLVED, 1.0, "win 1"), (Verdict.WRONG, 0.0, "lose 0"), (Verdict.WRONG, 0.25, "lose 0.25")),
    ]
    assert all(t.is_solution for t in group.trajectories)
    [completion] = sampled.policy.completions.values()
    assert token_ids_of(group.trajectories[2].segments[1:]) == completion.token_ids.tolist()
    logprobs = np.concatenate([s.behaviour_logprobs for s in group.trajectories[2].segments])
    np.testing.assert_array_equal(logprobs, completion.behaviour_logprobs)


async def test_an_answer_is_one_row_with_a_credit_for_each_candidate(scene: Scene) -> None:
    sampled = await sample(scene, tagged("win 1", "lose 0"))
    group = sampled.group
    assert group.sampler == "verbalized"
    assert [(row.trajectory, row.first, row.context_ids) for row in group.rows] == [(1, 1, None)]
    assert group.rows[0].credits == (
        Credit(1, 2, Stream.SOLUTION, "candidates", 1.0),
        Credit(2, 3, Stream.SOLUTION, "candidates", 0.0),
    )
    assert sampled.trained() == [["<answer>win 1</answer>", " or <answer>lose 0</answer><|im_end|>"]]


async def test_fewer_candidates_than_asked_for_are_judged_alike(scene: Scene) -> None:
    sampled = await sample(scene, tagged("win 1"), asked=4)
    assert sampled.trained() == [["<answer>win 1</answer><|im_end|>"]]
    assert sampled.rewards == [[1.0]]


async def test_candidates_nobody_asked_for_are_on_record_and_earn_nothing(scene: Scene) -> None:
    sampled = await sample(scene, tagged("win 1", "lose 0", "win 2", "win 3"))
    assert [t.answer for t in sampled.group.trajectories] == ["win 1", "lose 0"]
    assert sampled.parts(1) == [
        "<answer>win 1</answer>",
        " or <answer>lose 0</answer>",
        " or <answer>win 2</answer> or <answer>win 3</answer><|im_end|>",
    ]
    assert sampled.rewards == [[1.0, 0.0]]
    assert sampled.trained() == [["<answer>win 1</answer>", " or <answer>lose 0</answer>"]]


async def test_an_answer_cut_at_its_limit_keeps_its_whole_candidates(scene: Scene) -> None:
    limit = len(tagged("win 1")) + 10
    sampled = await sample(scene, tagged("win 1", "lose 0"), tokens_per_turn=limit)
    assert sampled.trained() == [["<answer>win 1</answer> or <answe"]]
    assert [s.ended for s in sampled.group.trajectories[0].segments[1:]] == [False]


async def test_only_the_last_part_of_a_cut_answer_was_cut(scene: Scene) -> None:
    said = tagged("win 1", "lose 0")
    sampled = await sample(scene, said, tokens_per_turn=len(said))
    assert [s.ended for s in sampled.group.trajectories[1].segments[1:]] == [True, False]


async def test_tokens_are_kept_as_they_were_sampled(scene: Scene) -> None:
    """The policy spells "up" in two bytes, for which the tokenizer has a token."""
    encode = ScriptedPolicy(lambda _: None).encode
    up = [encode(letter)[0] for letter in "up"]
    spelt = [*encode("<answer>")[:-1], *up, *encode("</answer><answer>win 1</answer>")]
    sampled = await sample(scene, spelt)
    assert token_ids_of(sampled.group.trajectories[1].segments[1:]) == spelt
    assert token_ids_of(sampled.group.trajectories[0].segments[1:])[8:10] == up


# --- several answers -------------------------------------------------------------------------------------------------


async def test_candidates_of_all_answers_are_compared_with_each_other(scene: Scene) -> None:
    sampled = await sample(scene, tagged("win 1", "lose 0"), tagged("lose 0.5", "lose 0.25"))
    assert [(t.parent, t.pivot) for t in sampled.group.trajectories] == [(None, None), (0, 2), (None, None), (2, 2)]
    assert [row.trajectory for row in sampled.group.rows] == [1, 3]
    assert {c.baseline for row in sampled.group.rows for c in row.credits} == {"candidates"}
    rewards = np.array([1.0, 0.0, 0.5, 0.25])
    expected = (rewards - rewards.mean()) / rewards.std()
    rows = training_rows([sampled.group], sampled.rollout._shared.config)
    judged = [row.advantages[row.sequences == c][0] for row in rows for c in (0, 1)]
    np.testing.assert_allclose(judged, expected, rtol=1e-5)
    assert len({r.seed for r in sampled.policy.requests}) == 2


async def test_repeats_inside_an_answer_are_counted_and_earn_what_they_earn(scene: Scene) -> None:
    sampled = await sample(scene, tagged("win 1", "win 1", "win 1", "lose 0"), tagged("win 1", "lose 0"), asked=4)
    assert sampled.rewards == [[1.0, 1.0, 1.0, 0.0], [1.0, 0.0]]
    assert sampled.group.stats.duplicate_answers == 2


async def test_every_judgement_is_an_episode_of_its_own(scene: Scene) -> None:
    sampled = await sample(scene, tagged("earn 1", "earn 2", "nothing"), asked=3)
    assert [t.answer for t in sampled.group.trajectories] == ["earn 1", "earn 2", "nothing"]
    # The answer as a whole was judged too, as that of any episode is.
    assert sampled.group.stats == GroupStats(env_steps=4)


async def test_the_same_ticket_gives_the_same_group(scene: Scene) -> None:
    one, two = [await sample(scene, tagged("win 1", "lose 0"), tagged("win 1")) for _ in range(2)]
    assert encode_group(one.group) == encode_group(two.group)


# --- what cannot be judged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["", "win", "<answer>win 1", "win 1</answer>", "</answer><answer>"])
async def test_an_answer_without_a_candidate_is_judged_as_a_whole(scene: Scene, said: str) -> None:
    sampled = await sample(scene, said, tagged("win 1"))
    whole = sampled.group.trajectories[0]
    assert (whole.verdict, whole.reward, whole.parent) == (Verdict.UNPARSABLE, 0.0, None)
    assert [s.role for s in whole.segments] == [Role.PROMPT, Role.ANSWER]
    assert sampled.rewards == [[0.0], [1.0]]
    assert sampled.trained()[0] == [f"{said}<|im_end|>"]


async def test_a_real_environment_says_what_its_form_costs(scene: Scene) -> None:
    def make_env() -> PathExploration:
        return PathExploration(PathExplorationSettings(format_penalty=-0.25))

    env = make_env()
    env.reset(seed=11)
    target = str(env.oracle())
    said = tagged(target, "A / B / C", target)
    sampled = await sample(scene, said, "I do not know.", asked=3, make_env=make_env)
    assert [t.verdict for t in sampled.group.trajectories] == [
        *(Verdict.SOLVED, Verdict.WRONG, Verdict.SOLVED, Verdict.UNPARSABLE),
    ]
    assert sampled.rewards == [[1.0, -0.25, 1.0], [-0.25]]
    assert sampled.group.stats == GroupStats(duplicate_answers=1, env_steps=5)


@pytest.mark.parametrize("trouble", ["raise", "break"])
async def test_a_candidate_that_cannot_be_judged_failed_and_is_in_no_credit(scene: Scene, trouble: str) -> None:
    sampled = await sample(scene, tagged("win 1", trouble, "lose 0"), asked=3)
    failed = sampled.group.trajectories[1]
    assert (failed.verdict, failed.reward) == (Verdict.FAILED, 0.0)
    assert failed.cause == {"raise": "scripted raised RuntimeError: boom", "break": "the judge broke"}[trouble]
    assert [row.trajectory for row in sampled.group.rows] == [2]
    assert [(c.first, c.last, c.reward) for c in sampled.group.rows[0].credits] == [(1, 2, 1.0), (3, 4, 0.0)]
    assert sampled.trained() == [["<answer>win 1</answer>", " or <answer>lose 0</answer><|im_end|>"]]


async def test_a_row_is_the_trajectory_of_the_last_candidate_that_could_be_judged(scene: Scene) -> None:
    sampled = await sample(scene, tagged("win 1", "raise"))
    assert [t.verdict for t in sampled.group.trajectories] == [Verdict.SOLVED, Verdict.FAILED]
    assert [(row.trajectory, len(row.credits)) for row in sampled.group.rows] == [(0, 1)]
    assert sampled.trained() == [["<answer>win 1</answer>"]]


async def test_an_answer_of_failures_is_no_row(scene: Scene) -> None:
    sampled = await sample(scene, tagged("raise", "break"), tagged("win 1"))
    assert [row.trajectory for row in sampled.group.rows] == [2]


async def test_no_room_for_an_answer_is_no_row(scene: Scene) -> None:
    sampled = await sample(scene, None, tagged("win 1", "lose 0"))
    assert [s.role for s in sampled.group.trajectories[0].segments] == [Role.PROMPT]
    assert [(t.parent, t.pivot) for t in sampled.group.trajectories] == [(None, None), (None, None), (1, 2)]
    assert [row.trajectory for row in sampled.group.rows] == [2]


# --- where candidates end --------------------------------------------------------------------------------------------


class Pieces:
    """Token number i says piece i."""

    def __init__(self, *pieces: str) -> None:
        self.all = ints(*range(len(pieces)))
        self._pieces = pieces

    def text(self, token_ids: Ints) -> str:
        return "".join(self._pieces[i] for i in token_ids).strip()


def found(*pieces: str) -> list[tuple[int, str]]:
    said = Pieces(*pieces)
    return [(c.tokens, c.text) for c in candidates(cast(Chat, said), said.all, "a", 100)]


def test_a_token_that_closes_one_and_opens_the_next_belongs_to_the_first() -> None:
    assert found("<a>", "1", "</a", "><", "a>", "2", "</a", ">") == [(4, "<a>1</a>"), (8, "<a>2</a>")]


def test_of_two_that_one_token_completes_the_second_is_left() -> None:
    assert found("<a>1</", "a><a>2</a>", "<a>3</a>") == [(2, "<a>2</a>"), (3, "<a>3</a>")]


def test_blanks_around_an_answer_do_not_shift_its_parts() -> None:
    assert found("\n ", " <a>1</a>", "  ", "<a>2</a>", " ") == [(2, "<a>1</a>"), (4, "  <a>2</a>")]


@pytest.mark.parametrize(
    ("said", "texts"),
    [
        ("", []),
        ("<a>1", []),
        ("1</a>", []),
        ("</a><a>1</a>", ["</a><a>1</a>"]),
        ("<a><a>1</a></a>", ["<a><a>1</a>"]),
        ("<a></a>", ["<a></a>"]),
        ("<b>1</b><a>2</a>3", ["<b>1</b><a>2</a>"]),
        ("<a>1</a><a>2", ["<a>1</a>"]),
    ],
)
def test_a_candidate_ends_with_a_closed_tag(said: str, texts: list[str]) -> None:
    assert [text for _, text in found(*said)] == texts


def test_letters_of_several_tokens_do_not_hide_where_a_candidate_ends(chat: Chat) -> None:
    said = "é<answer>ü</answer>é<answer>€</answer>"
    token_ids = chat._encode(said)
    first = len(chat._encode("é<answer>ü</answer>"))
    assert candidates(chat, token_ids, "answer", 2) == [
        Candidate(first, "é<answer>ü</answer>"),
        Candidate(len(token_ids), "é<answer>€</answer>"),
    ]
    assert candidates(chat, token_ids, "answer", 1) == [Candidate(first, "é<answer>ü</answer>")]


# --- settings --------------------------------------------------------------------------------------------------------


def test_games_of_several_turns_are_refused() -> None:
    with pytest.raises(ValidationError) as refusal:
        RunConfig.model_validate({"sampler": {"name": "verbalized"}, "env": {"name": "frozen_lake"}})
    assert all(part in str(refusal.value) for part in ("sampler.name (verbalized)", "env.max_turns is 6"))
    assert RunConfig.model_validate({"sampler": {"name": "verbalized"}, "env": {"name": "countdown"}})
