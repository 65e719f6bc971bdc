"""Groups as a reader sees them: texts token by token, worth by hand, lineage, and nothing that a text could run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.load import to_yaml
from configs.schema import RunConfig
from envs.codec import encode_group
from envs.trajectory import Credit, Group, PivotTrial, Role, Row, Stream, Ticket, Trajectory, Verdict
from orchestration.rollouts import Rollouts, RolloutsError, shown, token_texts
from orchestration.rollouts_page import as_json, policy, viewer
from tests.builders import answer, byte_tokenizer, observation, prompt

TOKENIZER = byte_tokenizer()
CONFIG = RunConfig.model_validate({"sampler": {"name": "dde", "root": {"name": "sesa"}}})


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def group(said: str = "go up", file_update: int = 0) -> Group:
    """Two sketches, a solution of each, and two branches of the one that failed; rewards 1, 0 and 1, 0."""
    start = prompt(*ids("where?"))
    sketches = Trajectory(
        (start, answer(*ids("a"), role=Role.SKETCH), observation(*ids("another")), answer(*ids("b"), role=Role.SKETCH)),
        Verdict.WRONG, 0.0,
    )  # fmt: skip
    right = Trajectory((start, answer(*ids(said))), Verdict.SOLVED, 1.0, answer="<b>U", sketch=0)
    turns = (start, answer(*ids("left")), observation(*ids("ice")), answer(*ids("no")))
    wrong = Trajectory(turns, Verdict.WRONG, 0.0, answer="L", sketch=1)
    branches = [
        Trajectory((*turns[:3], answer(*ids(word))), verdict, reward, answer=word, parent=2, pivot=3)
        for word, verdict, reward in (("up", Verdict.SOLVED, 1.0), ("x", Verdict.WRONG, 0.0))
    ]
    rows = (
        Row(1, 1, (Credit(1, 2, Stream.SOLUTION, "all", 1.0),)),
        Row(2, 1, (Credit(1, 4, Stream.SOLUTION, "all", 0.0, weight=0.5),)),
        Row(3, 3, (Credit(3, 4, Stream.BRANCH, "pivot", 1.0),)),
        Row(4, 3, (Credit(3, 4, Stream.BRANCH, "pivot", 0.0),)),
    )
    trials = (PivotTrial(2, 3, 0.5, (0.5,), 2, 1, 0.5),)
    return Group(Ticket(7 + file_update, "lake", 12), "dde", (sketches, right, wrong, *branches), rows, pivots=trials)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with samples of updates 10, 20 and 100, and a file that is none."""
    folder = tmp_path / "a-run"
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(CONFIG))
    TOKENIZER.save_pretrained(folder / "policy")
    for update in (10, 20, 100):
        (folder / "samples" / f"update-{update:06d}.msgpack").write_bytes(encode_group(group(file_update=update)))
    (folder / "samples" / "notes.txt").write_text("mine")
    return folder


# --- texts -----------------------------------------------------------------------------------------------------------


def test_token_texts_join_to_the_whole() -> None:
    assert token_texts(ids("go up"), TOKENIZER) == ["g", "o", " ", "up"]
    assert token_texts(ids("aé–z"), TOKENIZER) == ["a", "", "é", "", "", "–", "z"]
    assert token_texts([], TOKENIZER) == []
    assert token_texts([*ids("a"), TOKENIZER.eos_token_id], TOKENIZER) == ["a", "<|im_end|>"]


def test_a_character_that_was_cut_is_shown_as_broken() -> None:
    assert token_texts(ids("aé")[:2], TOKENIZER) == ["a", "\N{REPLACEMENT CHARACTER}"]
    broken = [ids("é")[0]] * 20  # never a character: eight at a time are given up
    assert len(token_texts(broken, TOKENIZER)) == 20


def test_the_blank_a_word_begins_with_is_kept() -> None:
    """Tokenizers of the SentencePiece kind strip it from what they decode alone."""
    tokenizer: Any = Stripping()
    texts = token_texts([1, 2, 3, 4], tokenizer)
    assert texts == ["go", " up", " left", "ly"]
    assert "".join(texts) == tokenizer.decode([1, 2, 3, 4])


class Stripping:
    """Decodes as those do: a blank for the mark of a word's beginning, but not at the start."""

    words = ("", "▁go", "▁up", "▁left", "ly")

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")


# --- a group ---------------------------------------------------------------------------------------------------------


def test_the_tree_of_a_group() -> None:
    seen = shown(group(), "update-000010.msgpack", CONFIG, TOKENIZER)
    assert (seen.update, seen.ticket, seen.sampler, seen.version) == (10, 7, "dde", 0)
    assert [one.kind for one in seen.trajectories] == ["sketches", "solution", "solution", "branch", "branch"]
    assert [one.sketch for one in seen.trajectories] == [None, 0, 1, None, None]
    assert [(one.parent, one.pivot) for one in seen.trajectories[3:]] == [(2, 3)] * 2
    assert [segment.texts for segment in seen.trajectories[3].segments] == [["up"]]  # its own alone
    assert [pivot.gain for pivot in seen.pivots] == [0.5]


def test_what_tokens_are_worth() -> None:
    """Rewards 1, 0: mean 0.5, standard deviation 0.5, so advantages 1 and -1; the second has weight 0.5."""
    _, right, wrong, first, second = shown(group(), "update-000010.msgpack", CONFIG, TOKENIZER).trajectories
    assert [segment.advantage for segment in right.segments] == [None, pytest.approx(1.0, abs=1e-4)]
    assert [s.advantage for s in wrong.segments] == [
        None, pytest.approx(-0.5, abs=1e-4), None, pytest.approx(-0.5, abs=1e-4),
    ]  # fmt: skip
    assert [first.segments[0].advantage, second.segments[0].advantage] == pytest.approx([1.0, -1.0], abs=1e-4)
    assert right.segments[1].logprobs == [-0.5] * 4
    assert right.segments[0].texts == ["where?"]  # not sampled: one text


def test_what_is_not_trained_is_worth_nothing() -> None:
    """Rewards differ, but the answer that was cut at its limit is masked."""
    cut = replace(answer(*ids("left")), ended=False)
    one = group()
    trajectories = (
        one.trajectories[0],
        one.trajectories[1],
        Trajectory((prompt(*ids("where?")), cut), Verdict.WRONG, 0.0),
    )
    rows = (one.rows[0], Row(2, 1, (Credit(1, 2, Stream.SOLUTION, "all", 0.0),)))
    masked = RunConfig.model_validate({"grpo": {"overlong": {"mask_truncated": True}}})
    for config, worth in ((RunConfig(), pytest.approx(-1.0, abs=1e-4)), (masked, None)):
        seen = shown(Group(one.ticket, "parallel", trajectories, rows), "x", config, TOKENIZER)
        assert seen.trajectories[2].segments[1].advantage == worth
        assert seen.trajectories[1].segments[1].advantage == pytest.approx(1.0, abs=1e-4)
        assert not seen.trajectories[2].segments[1].ended


def test_secrets_in_what_an_environment_says_are_not_shown() -> None:
    told = Trajectory((prompt(*ids("see https://me:pw@host")), answer(*ids("up"))), Verdict.WRONG, 0.0)
    seen = shown(Group(Ticket(0, "lake", 0), "parallel", (told,), ()), "x", RunConfig(), TOKENIZER)
    assert seen.trajectories[0].segments[0].texts == ["see https://[...]@host"]


def test_a_continuation_is_no_branch() -> None:
    parent = Trajectory((prompt(1), answer(*ids("a"))), Verdict.WRONG, 0.0)
    child = Trajectory((prompt(1), answer(*ids("a")), answer(*ids("b"))), Verdict.WRONG, 0.0, parent=0, pivot=2)
    one = Group(Ticket(0, "lake", 0), "sequential", (parent, child), ())
    assert [t.kind for t in shown(one, "x", RunConfig(), TOKENIZER).trajectories] == ["solution", "continuation"]


# --- a run's samples -------------------------------------------------------------------------------------------------


def test_newest_first_and_nothing_else(run: Path) -> None:
    rollouts = Rollouts(run)
    assert rollouts.files() == [f"update-{update:06d}.msgpack" for update in (100, 20, 10)]
    assert rollouts.read("update-000020.msgpack")["ticket"] == 27
    json.dumps(rollouts.read("update-000020.msgpack"), allow_nan=False)


def test_as_many_as_fit(run: Path) -> None:
    assert [one["update"] for one in Rollouts(run).newest(20, lambda _: 10)] == [100, 20]
    assert list(Rollouts(run).newest(9, lambda _: 10)) == []
    # One that is too large hides no smaller one.
    assert [one["update"] for one in Rollouts(run).newest(20, lambda one: one["update"])] == [20]


def test_one_that_cannot_be_read_hides_no_other(run: Path) -> None:
    (run / "samples" / "update-000100.msgpack").write_bytes(b"nonsense")
    assert [one["update"] for one in Rollouts(run).newest(100, lambda _: 10)] == [20, 10]


@pytest.mark.parametrize("name", ["../config.yaml", "update-000010.msgpack/..", "notes.txt", "", "update-1.msgpack\n"])
def test_only_samples_are_read(run: Path, name: str) -> None:
    with pytest.raises(RolloutsError, match="no name of a sample"):
        Rollouts(run).read(name)


def test_a_damaged_sample_is_named(run: Path) -> None:
    file = run / "samples" / "update-000010.msgpack"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(RolloutsError, match=r"^samples/update-000010.msgpack: the CRC does not match"):
        Rollouts(run).read(file.name)
    with pytest.raises(RolloutsError, match=r"^samples/update-000011.msgpack: .*No such file"):
        Rollouts(run).read("update-000011.msgpack")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RolloutsError, match=r"no run's folder: it has no config\.yaml"):
        Rollouts(tmp_path)
    (tmp_path / "config.yaml").write_text("rollout: {actors: many}")
    with pytest.raises(RolloutsError, match=r"config.yaml: rollout.actors: "):
        Rollouts(tmp_path)


def test_a_policy_that_is_not_here_is_said(run: Path, tmp_path: Path) -> None:
    (run / "policy").rename(tmp_path / "away")
    (run / "config.yaml").write_text(to_yaml(RunConfig.model_validate({"model": {"warmup": {"cache": str(tmp_path)}}})))
    with pytest.raises(RolloutsError, match=r"a-run: its tokenizer cannot be had: model.warmup.cache: .* is not there"):
        Rollouts(run).read("update-000010.msgpack")


# --- the page --------------------------------------------------------------------------------------------------------

EVIL = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"><!--"


def test_no_text_can_leave_its_place_in_the_page() -> None:
    text = as_json({"a": EVIL, "b": "& \N{LINE SEPARATOR}"})
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == {"a": EVIL, "b": "& \N{LINE SEPARATOR}"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json(float("nan"))


def test_the_page_runs_its_one_script_and_loads_nothing() -> None:
    seen: dict[str, Any] = {"file": "update-000010.msgpack", "said": EVIL}
    html = viewer(["update-000010.msgpack"], [seen], live=False)
    assert html.count("<script") == html.count("</script>") == 2
    assert "pwned" in html
    assert "innerHTML" not in html
    for live in (False, True):
        rules = dict(rule.strip().split(" ", 1) for rule in policy(live).split(";"))
        assert rules["default-src"] == "'none'"
        assert rules["script-src"].startswith("'sha256-")
        assert ("connect-src" in rules) == live
