"""Who is asked for what; how `python -m orchestration.evaluate` reads its words."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayError

from configs.samplers import DdeSettings, ParallelSettings, SamplerSettings, SequentialSettings, SesaSettings
from configs.schema import RunConfig
from envs.codec import decode_group, encode_group
from envs.trajectory import Group, Ticket, Trajectory, Verdict
from orchestration import answers, judgement_output, judging
from orchestration.cluster import ROOT
from orchestration.evaluate import main
from orchestration.evaluation import LISTS_APART, PAYLOADS_KEPT, EvaluationError, held_out
from orchestration.held_out import evaluate, sample, target_count
from orchestration.judgement import judge
from orchestration.judging import JudgedPolicy, named_policies, without_ranks
from orchestration.plans import Plan, plan_of, settings_digest
from orchestration.policy import PolicyError
from orchestration.room import actor_role
from orchestration.tickets import held_out_tickets
from tests.builders import TICKET, parallel_group

Answer = Callable[[Sequence[Ticket], int], list[bytes]]


class Actor:
    """`actor.sample_held_out.remote(tickets, samples, settings)`, as Ray has it."""

    def __init__(self, answer: Answer, delay_s: float = 0.0) -> None:
        self.asked: list[list[Ticket]] = []
        self.by: list[SamplerSettings | None] = []
        self.sample_held_out, self._answer, self._delay_s = self, answer, delay_s

    async def remote(self, tickets: Sequence[Ticket], samples: int, by: SamplerSettings | None) -> list[bytes]:
        self.asked.append(list(tickets))
        self.by.append(by)
        await asyncio.sleep(self._delay_s)
        return self._answer(tickets, samples)


class Fixed:
    """These actors, of whom one that fails is not asked again."""

    def __init__(self, *actors: Actor) -> None:
        self.left: dict[int, Any] = dict(enumerate(actors))
        self.failed: list[tuple[int, str]] = []

    async def there(self) -> dict[int, Any]:
        assert self.left, "nobody is left"
        return dict(self.left)

    def lost(self, number: int, error: RayError | TimeoutError) -> None:
        self.failed.append((number, str(error)))
        del self.left[number]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOMENT_S", 0.001)


def half(tickets: Sequence[Ticket], samples: int) -> list[bytes]:
    """Every other sample of episodes with an even number is solved, all of the others."""
    rewards = {0: [1.0, 0.0] * (samples // 2), 1: [1.0] * samples}
    return [encode_group(replace(parallel_group(*rewards[t.index % 2]), ticket=t)) for t in tickets]


def configured(episodes: int, timeout_s: float = 10.0, **groups: Any) -> RunConfig:
    return RunConfig.model_validate({"eval": {"episodes": episodes, "samples": 4, "timeout_s": timeout_s}, **groups})


# --- asking the actors -----------------------------------------------------------------------------------------------


async def test_all_held_out_episodes_are_sampled_once_by_all_actors() -> None:
    actors = [Actor(half), Actor(half)]
    evaluation = await evaluate(configured(70), Fixed(*actors))
    asked = [ticket for actor in actors for chunk in actor.asked for ticket in chunk]
    assert sorted(asked, key=lambda t: t.index) == held_out_tickets(70, "frozen_lake")
    assert [[len(chunk) for chunk in actor.asked] for actor in actors] == [[16, 16, 6], [16, 16]]
    assert {by for actor in actors for by in actor.by} == {None}
    assert tuple(evaluation.by_episode.values()) == (0.5, 1.0) * 35
    assert evaluation.success == 0.75
    assert len(evaluation.payloads) == PAYLOADS_KEPT < 70


async def test_an_actor_without_episodes_is_left_alone() -> None:
    actors = [Actor(half), Actor(half)]
    evaluation = await evaluate(configured(3), Fixed(*actors))
    assert [len(actor.asked) for actor in actors] == [1, 0]
    assert len(evaluation.by_episode) == 3


async def test_lists_of_an_episode_share_its_seed_and_no_number() -> None:
    actor = Actor(half)
    done: list[tuple[int, int]] = []
    plan = Plan(4, 3, SequentialSettings(solutions=4))
    payloads = await sample(configured(30), Fixed(actor), plan, lambda *told: done.append(told))
    tickets = [ticket for chunk in actor.asked for ticket in chunk]
    assert len(payloads) == len({t.index for t in tickets}) == 90
    by_number = {t.index: t.seed for t in tickets}
    for ticket in held_out_tickets(30, "frozen_lake"):
        assert {by_number[ticket.index + i * LISTS_APART] for i in range(3)} == {ticket.seed}
    assert done == [(64, 90), (90, 90)]
    assert actor.by == [plan.settings, plan.settings]


async def test_log_probs_are_compared_on_groups_that_have_some() -> None:
    def some_failed(tickets: Sequence[Ticket], samples: int) -> list[bytes]:
        failed = Trajectory((), Verdict.FAILED, 0.0, cause="boom")
        return [
            encode_group(Group(t, "", (failed,), ())) if t.index % 2 else data
            for t, data in zip(tickets, half(tickets, samples), strict=True)
        ]

    evaluation = await evaluate(configured(6), Fixed(Actor(some_failed)))
    assert (evaluation.unjudged, evaluation.cause, len(evaluation.payloads)) == (3, "boom", 3)


async def test_the_episodes_of_an_actor_that_takes_too_long_go_to_the_others(quick: None) -> None:
    actors = Fixed(Actor(half), Actor(half, delay_s=5.0))
    evaluation = await evaluate(configured(40, timeout_s=0.05), actors)
    assert len(evaluation.by_episode) == 40
    assert actors.failed == [(1, "it did not sample 16 held-out episodes within 0.05 s (eval.timeout_s)")]


async def test_episodes_that_no_actor_gets_through_end_the_evaluation(quick: None) -> None:
    actors = Fixed(*(Actor(half, delay_s=5.0) for _ in range(9)))
    says = (
        r"^3 held-out episodes failed for the 4th time, last on rollout actor 3: "
        r"it did not sample 3 held-out episodes within 0.05 s \(eval.timeout_s\)$"
    )
    with pytest.raises(EvaluationError, match=says):
        await evaluate(configured(3, timeout_s=0.05), actors)
    assert [number for number, _ in actors.failed] == [0, 1, 2, 3]


async def test_what_fails_on_an_actor_is_not_hidden() -> None:
    def broken(tickets: Sequence[Ticket], samples: int) -> list[bytes]:
        raise RuntimeError("the engine stopped")

    actors = Fixed(Actor(half), Actor(broken))
    with pytest.raises(RuntimeError, match="the engine stopped"):
        await evaluate(configured(40), actors)


async def test_the_episodes_of_an_actor_that_fails_go_to_the_others() -> None:
    """Actor 1 dies on its second call; all episodes are sampled, in their order, and told of once."""
    calls: list[int] = []

    def dying(tickets: Sequence[Ticket], samples: int) -> list[bytes]:
        calls.append(len(tickets))
        if len(calls) == 2:
            raise RayActorError(error_msg="The actor died: out of memory")
        return half(tickets, samples)

    lanes, told = Fixed(Actor(half), Actor(dying)), list[tuple[int, int]]()
    payloads = await sample(configured(100), lanes, Plan(4), lambda *done: told.append(done))
    assert [decode_group(data).ticket for data in payloads] == held_out_tickets(100, "frozen_lake")
    assert lanes.failed == [(1, "The actor died: out of memory")]
    assert len(calls) == 2
    assert told == sorted(told)
    assert told[-1] == (100, 100)


async def test_episodes_left_when_all_lanes_have_ended_are_handed_out_again() -> None:
    """One chunk, and who has it fails when the other has nothing more to do."""

    def dying(tickets: Sequence[Ticket], samples: int) -> list[bytes]:
        raise RayActorError(error_msg="The actor died: out of memory")

    actors = [Actor(dying, delay_s=0.01), Actor(half)]
    evaluation = await evaluate(configured(8), Fixed(*actors))
    assert len(evaluation.by_episode) == 8
    assert [len(actor.asked) for actor in actors] == [1, 1]


def test_common_targets_are_the_environments() -> None:
    assert target_count(RunConfig().env) is None
    settings = RunConfig.model_validate({"env": {"name": "path_exploration", "targets": 7}})
    assert target_count(settings.env) == 7


# --- how episodes are sampled ----------------------------------------------------------------------------------------


def test_the_configs_settings_count_where_they_are_of_the_mode() -> None:
    sesa = SesaSettings(sketches=4, expansions_per_sketch=2, sketch_tokens=9)
    assert plan_of("plain", sesa, 64) == Plan(64)
    assert plan_of("guided", sesa, 64) == Plan(8, 8, sesa)
    assert plan_of("guided", DdeSettings(root=sesa), 64) == Plan(8, 8, sesa)
    mixed = sesa.model_copy(update={"plain_solutions": 4})
    assert plan_of("guided", mixed, 64) == Plan(8, 8, sesa)  # solutions without a sketch are not guided play
    assert plan_of("guided", ParallelSettings(), 64) == Plan(8, 8, SesaSettings())
    assert plan_of("sequential", ParallelSettings(), 64) == Plan(8, 8, SequentialSettings(duplicates="keep"))


def test_lists_are_whole_and_at_least_one() -> None:
    assert [plan_of("guided", SesaSettings(sketches=5), n).samples for n in (1, 7, 8, 64)] == [5, 5, 10, 65]
    assert str(plan_of("guided", SesaSettings(sketches=5), 64)) == "13 lists of 5"


def test_a_repeat_of_a_list_is_a_sample_not_tried_again() -> None:
    resampling = SequentialSettings(solutions=3, duplicates="resample", history="text")
    settings = plan_of("sequential", resampling, 6).settings
    assert settings == SequentialSettings(solutions=3, duplicates="keep", history="text")


# --- policies --------------------------------------------------------------------------------------------------------


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_runs_folder_stands_for_the_policy_it_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model(run / "policy")
    (run / "config.yaml").write_text("")
    plain = model(tmp_path / "plain")
    first, second, third = named_policies(RunConfig(), [str(run), str(plain), "Some/Model"])
    assert (first.name, first.config.model.path) == (str(run), str(run / "policy"))
    assert (second.name, second.config.model.path) == (str(plain), str(plain))
    assert third.config.model.path == "Some/Model"


def test_engines_that_shared_gpus_with_ranks_are_judged_on_gpus_of_their_own() -> None:
    halves = {"rollout": {"actors": 2, "gpus_per_actor": 0.5}, "deepspeed": {"ranks": 2, "gpus_per_rank": 0.5}}
    alone = without_ranks(RunConfig.model_validate(halves | {"cluster": {"colocated": True}}))
    assert (actor_role(alone).count, actor_role(alone).gpus, alone.shares_gpus) == (2, 1.0, False)
    assert RunConfig.model_validate(alone.model_dump()) == alone
    assert without_ranks(RunConfig()) == RunConfig()


def test_without_a_name_it_is_the_configs_policy() -> None:
    [policy] = named_policies(RunConfig(), [])
    assert (policy.name, policy.config) == ("warmed-up policy", RunConfig())


def test_what_is_no_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"^--policy no/such/one: no/such/one is not a folder, nor a hub id"):
        named_policies(RunConfig(), ["no/such/one"])
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(PolicyError, match=r"the run has left no policy/ yet"):
        named_policies(RunConfig(), [str(tmp_path)])
    with pytest.raises(PolicyError, match=r"^--policy a/b is given twice"):
        named_policies(RunConfig(), ["a/b", "a/b"])


# --- the command -----------------------------------------------------------------------------------------------------


def judging_one_of_two(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The first policy is judged, then this happens."""

    def judge_policies(*_: Any) -> Iterator[JudgedPolicy]:
        yield JudgedPolicy("first", "id:first", 1.0, judge(held_out(map(decode_group, half([TICKET], 4))), None, None))
        raise error

    monkeypatch.setattr(judging, "judge_policies", judge_policies)


@pytest.mark.parametrize(
    ("error", "status"), [(EvaluationError("too slow"), 1), (PolicyError("gone"), 2), (KeyboardInterrupt(), 130)]
)
def test_what_was_judged_is_shown_and_written_when_the_next_policy_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException,
    status: int,
) -> None:  # fmt: skip
    judging_one_of_two(monkeypatch, error)
    output = tmp_path / "figures.json"
    assert main(["--config", str(ROOT / "configs" / "quickstart.yaml"), "--output", str(output)]) == status
    assert [policy["name"] for policy in json.loads(output.read_text())["policies"]] == ["first"]
    said = capsys.readouterr()
    assert "different solutions" in said.out
    assert said.err.startswith("error: ")


def test_a_file_that_cannot_be_written_does_not_lose_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    judging_one_of_two(monkeypatch, EvaluationError("too slow"))
    monkeypatch.setattr(judgement_output, "write", full)
    output = tmp_path / "figures.json"
    assert main(["--config", str(ROOT / "configs" / "quickstart.yaml"), "--output", str(output)]) == 1
    said = capsys.readouterr()
    assert "different solutions" in said.out
    assert f"error: --output {output}: No space left on device" in said.err


def test_a_digest_is_of_what_samples_depend_on() -> None:
    plain = settings_digest(RunConfig())
    others: list[dict[str, Any]] = [
        {"env": {"name": "frozen_lake", "size": 5}}, {"rollout": {"temperature": 0.5}}, {"run": {"seed": 1}},
        {"model": {"path": "x"}},
    ]  # fmt: skip
    assert len({plain, *(settings_digest(RunConfig.model_validate(other)) for other in others)}) == 5
    assert settings_digest(RunConfig.model_validate({"optim": {"lr": 1.0}, "run": {"root": "elsewhere"}})) == plain


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rollout.actrs=3"], "did you mean 'rollout.actors'?"),
        (["--samples", "0"], "--samples 0: at least one sample is needed"),
        (["--policy", "no/such/policy"], "--policy no/such/policy: no/such/policy is not a folder, nor a hub id"),
        (["--policy", "a/b", "eval.episods=3"], "did you mean 'eval.episodes'?"),
        (["--output", "configs"], "--output configs is a folder: name a file"),
        (["--output", "README.md/x.json"], "--output README.md/x.json: README.md cannot be made"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.evaluate", "--config", "configs/quickstart.yaml", f"run.root={tmp_path}",
         *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert says in line
