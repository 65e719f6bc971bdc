"""Stage I by hand: what each sketch is sampled behind, when two are the same, and the words of the prompts."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError

from actors.samplers.sesa import SesaSampler
from configs.samplers import SesaSettings, TemplateSettings
from envs.trajectory import Credit, GroupStats, Role, Stream
from tests.actors.sesa_groups import SKETCHES, SOLUTIONS, prompt_ids, sample
from tests.builders import Said, Scene, ScriptedEnv, ScriptedPolicy, plan, token_ids_of

# --- one conversation ------------------------------------------------------------------------------------------------


async def test_the_list_is_one_conversation_in_which_each_sketch_follows_those_before(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, SOLUTIONS)
    listed = sampled.group.trajectories[0]
    assert [s.role for s in listed.segments] == [
        *(Role.PROMPT, Role.SKETCH, Role.OBSERVATION, Role.SKETCH, Role.OBSERVATION, Role.SKETCH),
    ]
    assert scene.chat._tokenizer.decode(token_ids_of(listed.segments)) == (
        "<|im_start|>system\nSay win.<|im_end|>\n<|im_start|>user\nEpisode 11. Name plan 0.<|im_end|>\n"
        "<|im_start|>assistant\nplan up<|im_end|>\n<|im_start|>user\n Name plan 1.<|im_end|>\n"
        "<|im_start|>assistant\nplan down<|im_end|>\n<|im_start|>user\n Name plan 2.<|im_end|>\n"
        "<|im_start|>assistant\nplan left<|im_end|>"
    )
    drafts = sampled.policy.requests[:3]
    assert [r.context_ids.tolist() for r in drafts] == [token_ids_of(listed.segments[:n]) for n in (1, 3, 5)]
    assert not listed.is_solution


async def test_a_sketch_cut_at_its_limit_is_closed_before_the_next_request(scene: Scene) -> None:
    cut = {"sketch/0/0": "plan upward", "sketch/1/0": "plan down"}
    sampled = await sample(scene, cut, {"expansion/0/0/1": "win 1"}, sketches=2, sketch_tokens=6)
    assert [r.max_tokens for r in sampled.policy.requests[:2]] == [6, 6]
    first, request = sampled.group.trajectories[0].segments[1:3]
    assert first.token_ids.tolist() == sampled.words("plan up")
    assert request.token_ids[0] == scene.chat.eos_id
    assert "plan up<|im_end|>\n<|im_start|>user\n Name plan 1." in sampled.policy.requests[1].context
    assert prompt_ids(sampled.group.trajectories[1]) == sampled.guided(*sampled.words("plan up"))


async def test_a_sketch_is_followed_in_the_very_tokens_it_was_sampled_in(scene: Scene) -> None:
    """The policy spells "plan up" in bytes; tokenised again it would be one token shorter."""
    canonical = ScriptedPolicy(lambda _: None).encode("plan up")[:-1]
    spelt = [*canonical[:-1], *(ScriptedPolicy(lambda _: None).encode(letter)[0] for letter in "up")]
    assert len(spelt) == len(canonical) + 1
    end = scene.chat.eos_id
    said: dict[str, Said] = {**SKETCHES, "sketch/0/0": [*spelt, end]}
    sampled = await sample(scene, said, SOLUTIONS)
    assert prompt_ids(sampled.group.trajectories[1]) == sampled.guided(*spelt)
    assert sampled.group.trajectories[0].segments[1].token_ids.tolist() == [*spelt, end]


# --- a prompt for each sketch ----------------------------------------------------------------------------------------

OPENED = "<|im_start|>system\nSay win.<|im_end|>\n<|im_start|>user\nEpisode 11."
ASKED = "<|im_end|>\n<|im_start|>assistant\n"


async def test_told_as_text_each_sketch_has_a_prompt_that_tells_those_before(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, SOLUTIONS, history="text", train_on="guided")
    assert [r.context for r in sampled.policy.requests[:3]] == [
        f"{OPENED} Name plan 0.{ASKED}",
        f"{OPENED} Name plan 0.\nSo far: plan up\n Name plan 1.{ASKED}",
        f"{OPENED} Name plan 0.\nSo far: plan up; plan down\n Name plan 2.{ASKED}",
    ]


async def test_told_as_text_each_sketch_is_a_trajectory_and_a_row_in_the_context_it_was_sampled_in(
    scene: Scene,
) -> None:
    sampled = await sample(scene, SKETCHES, SOLUTIONS, history="text", train_on="guided")
    group = sampled.group
    for trajectory, request, words in zip(
        group.trajectories[:3], sampled.policy.requests[:3], ("plan up", "plan down", "plan left"), strict=True
    ):
        assert [s.role for s in trajectory.segments] == [Role.PROMPT, Role.SKETCH]
        assert prompt_ids(trajectory) == request.context_ids.tolist()
        assert token_ids_of(trajectory.segments[1:]) == sampled.policy.encode(words)
        assert not trajectory.is_solution
    assert [t.sketch for t in group.trajectories] == [None, None, None, 0, 1, 2]
    assert [(row.trajectory, row.first, row.context_ids) for row in group.rows] == [
        *((k, 1, None) for k in (3, 4, 5, 0, 1, 2)),
    ]
    assert [row.credits for row in group.rows[3:]] == [
        (Credit(1, 2, Stream.SKETCH, "sketches", reward),) for reward in (1.0, 0.0, 0.25)
    ]
    assert [prompt_ids(t) for t in group.trajectories[3:]] == [
        sampled.guided(*sampled.words(words)) for words in ("plan up", "plan down", "plan left")
    ]
    assert group.sampled_tokens == sum(len(c.token_ids) for c in sampled.policy.completions.values())
    assert group.stats == GroupStats(sketches=3, env_steps=3)


async def test_told_as_text_the_episodes_are_found_by_their_numbers(scene: Scene) -> None:
    policy = ScriptedPolicy(lambda _: None, plan({**SKETCHES, **SOLUTIONS}))
    group, episodes = await SesaSampler(SesaSettings(sketches=3, history="text")).sample_root(
        await scene.rollout(policy)
    )
    assert sorted(episodes) == [3, 4, 5]
    assert [episodes[i].trajectory for i in sorted(episodes)] == list(group.trajectories[3:])


async def test_told_as_text_only_accepted_sketches_are_told(scene: Scene) -> None:
    said: dict[str, Said] = {"sketch/0/0": "no idea", "sketch/1/0": "plan up", "sketch/2/0": "plan UP"}
    sampled = await sample(
        scene, said, {**SOLUTIONS, "sketch/3/0": "plan left", "expansion/3/0/1": "win 1"},
        sketches=4, history="text", train_on="guided",
    )  # fmt: skip
    assert [r.context for r in sampled.policy.requests[:4]] == [
        f"{OPENED} Name plan 0.{ASKED}",
        f"{OPENED} Name plan 0.{ASKED}",
        f"{OPENED} Name plan 0.\nSo far: plan up\n Name plan 2.{ASKED}",
        f"{OPENED} Name plan 0.\nSo far: plan up\n Name plan 3.{ASKED}",
    ]
    assert sampled.credits(Stream.SKETCH) == [(0, -1.0, 1.0), (1, 0.0, 1.0), (2, -1.0, 1.0), (3, 1.0, 1.0)]
    assert [t.sketch for t in sampled.group.trajectories[4:]] == [None, 1, None, 3]


async def test_told_as_text_tries_taken_back_come_behind_the_list(scene: Scene) -> None:
    tries: dict[str, Said] = {**SKETCHES, "sketch/1/0": "plan UP", "sketch/1/1": "no idea", "sketch/1/2": "plan down"}
    sampled = await sample(scene, tries, SOLUTIONS, history="text", duplicates="resample", train_on="guided")
    group = sampled.group
    assert [token_ids_of(t.segments[1:]) for t in group.trajectories[:5]] == [
        sampled.policy.encode(words) for words in ("plan up", "plan down", "plan left", "plan UP", "no idea")
    ]
    assert prompt_ids(group.trajectories[1]) == prompt_ids(group.trajectories[3]) == prompt_ids(group.trajectories[4])
    assert [row.trajectory for row in group.rows] == [5, 6, 7, 0, 1, 2, 3, 4]
    assert [reward for _, reward, _ in sampled.credits(Stream.SKETCH)] == [1.0, 0.0, 0.25, -1.0, -1.0]
    assert group.stats == GroupStats(3, duplicate_sketches=1, unparsable_sketches=1, resampled_sketches=2, env_steps=3)


async def test_told_as_text_a_sketch_of_which_nothing_is_known_is_no_row(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, {**SOLUTIONS, "expansion/1/0/1": "raise"}, history="text", train_on="both")
    assert sampled.credits(Stream.SKETCH) == [(0, 1.0, 1.0), (2, 0.25, 1.0)]


async def test_told_as_text_no_room_for_another_sketch_ends_the_list(scene: Scene) -> None:
    sampled = await sample(scene, {**SKETCHES, "sketch/2/0": None}, SOLUTIONS, history="text", train_on="guided")
    assert [t.sketch for t in sampled.group.trajectories] == [None, None, 0, 1, None]
    assert sampled.credits(Stream.SKETCH) == [(0, 1.0, 1.0), (1, 0.0, 1.0)]
    assert sampled.group.stats == GroupStats(sketches=2, env_steps=3)


# --- what counts as the same -----------------------------------------------------------------------------------------


class LastWordCounts(ScriptedEnv):
    """A sketch is the last of two words, in any letters: `go up` is `plan UP`."""

    def sketch_key(self, sketch: str) -> str | None:
        words = sketch.lower().split()
        return words[1] if len(words) == 2 else None


# second sketch -> for whom it repeats "plan up"
REPEATS = {
    "plan up": {"environment", "normalised", "exact"},
    "plan  UP": {"environment", "normalised"},
    "go up": {"environment"},
    "plan down": set[str](),
}


@pytest.mark.parametrize(
    ("second", "same_as", "policy"),
    product(REPEATS, ("environment", "normalised", "exact"), ("penalty", "resample", "keep")),
)
async def test_a_repeat_is_what_duplicate_of_says_and_meets_what_duplicates_says(
    scene: Scene, second: str, same_as: str, policy: str
) -> None:
    said: dict[str, Said] = {"sketch/0/0": "plan up", "sketch/1/0": second, "sketch/1/1": "plan left"}
    sampled = await sample(
        scene, said, SOLUTIONS,
        sketches=2, make_env=LastWordCounts, train_on="guided",
        duplicates=policy, duplicate_of=same_as, max_resamples=1, rejected_reward=-0.5,
    )  # fmt: skip
    repeated = same_as in REPEATS[second]
    resampled = repeated and policy == "resample"
    rejected = repeated and policy == "penalty"
    assert [t.sketch for t in sampled.group.trajectories if t.is_solution] == [0, None if rejected else 1]
    rewards = [1.0, -0.5 if rejected else 0.0, *([-0.5] if resampled else [])]
    assert [reward for _, reward, _ in sampled.credits(Stream.SKETCH)] == rewards
    assert sampled.group.stats == GroupStats(
        2, duplicate_sketches=int(repeated), resampled_sketches=int(resampled), env_steps=2
    )


@pytest.mark.parametrize("same_as", ["environment", "normalised", "exact"])
async def test_what_can_be_read_is_the_environments_to_say(scene: Scene, same_as: str) -> None:
    sampled = await sample(
        scene, {**SKETCHES, "sketch/1/0": "no idea"}, SOLUTIONS, duplicate_of=same_as, duplicates="keep"
    )
    assert [t.sketch for t in sampled.group.trajectories] == [None, 0, None, 2]
    assert sampled.group.stats == GroupStats(3, unparsable_sketches=1, env_steps=3)


# --- the words of the prompts ----------------------------------------------------------------------------------------

TEMPLATES: dict[str, Any] = {
    "request": '\nPlan {number}, as {"plan": "..."}:',
    "another": "Plan {number}, unlike those:",
    "guidance": "\nUse [{sketch}] {well}!",
}


async def test_templates_replace_the_environments_words(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, SOLUTIONS, templates=TEMPLATES)
    first, second, third, *solutions = [r.context for r in sampled.policy.requests]
    assert first == f'{OPENED}\nPlan 1, as {{"plan": "..."}}:{ASKED}'
    assert second == f"{first}plan up<|im_end|>\n<|im_start|>user\nPlan 2, unlike those:{ASKED}"
    assert third == f"{second}plan down<|im_end|>\n<|im_start|>user\nPlan 3, unlike those:{ASKED}"
    assert solutions == [f"{OPENED}\nUse [plan {way}] {{well}}!{ASKED}" for way in ("up", "down", "left")]


async def test_templates_frame_the_sketches_told_as_text(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, SOLUTIONS, templates=TEMPLATES, history="text")
    opened = f'{OPENED}\nPlan 1, as {{"plan": "..."}}:'
    assert [r.context for r in sampled.policy.requests[:3]] == [
        f"{opened}{ASKED}",
        f"{opened}\nSo far: plan up\nPlan 2, unlike those:{ASKED}",
        f"{opened}\nSo far: plan up; plan down\nPlan 3, unlike those:{ASKED}",
    ]


async def test_one_template_leaves_the_other_words_as_they_are(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, SOLUTIONS, templates={"another": "More."})
    assert sampled.policy.requests[0].context == f"{OPENED} Name plan 0.{ASKED}"
    assert sampled.policy.requests[1].context.endswith(f"<|im_start|>user\nMore.{ASKED}")
    assert sampled.policy.requests[3].context == f"{OPENED} Follow:\nplan up\nnow.{ASKED}"


async def test_a_template_is_put_around_the_very_tokens_of_the_sketch(scene: Scene) -> None:
    """The policy spells "up" in two bytes; the tokenizer has a token for it."""
    encode = ScriptedPolicy(lambda _: None).encode
    spelt = [*encode("plan ")[:-1], *(encode(letter)[0] for letter in "up")]
    said: dict[str, Said] = {**SKETCHES, "sketch/0/0": [*spelt, scene.chat.eos_id]}
    sampled = await sample(scene, said, SOLUTIONS, templates=TEMPLATES)
    before, after = f"{OPENED}\nUse [", f"] {{well}}!{ASKED}"
    assert prompt_ids(sampled.group.trajectories[1]) == [
        *scene.chat._encode(before).tolist(), *spelt, *scene.chat._encode(after).tolist(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("templates", "complaint"),
    [
        ({"guidance": "Follow it."}, "guidance (Follow it.) must hold {sketch} once"),
        ({"guidance": "{sketch}{sketch}"}, "guidance ({sketch}{sketch}) must hold {sketch} once"),
        ({"guidance": "{number}: {sketch}"}, "guidance ({number}: {sketch}) cannot hold {number}"),
        ({"request": "Not {sketch}."}, "request (Not {sketch}.) cannot hold {sketch}"),
        ({"another": "Not {sketch}."}, "another (Not {sketch}.) cannot hold {sketch}"),
    ],
)
def test_templates_that_cannot_be_filled_in_are_refused(templates: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        TemplateSettings.model_validate(templates)
    assert complaint in str(refusal.value)
