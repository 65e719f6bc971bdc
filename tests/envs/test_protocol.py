"""The text protocol: what counts as an answer, and words that are safe to repeat."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.environments import TurnSettings
from envs.protocol import MAX_TEXT, form, read_answer, shown, split_actions, spoken, tags


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>Up</answer>", "Up"),
        ("<think>a</think> <answer> Up || Down </answer> done", "Up || Down"),
        ("<answer>Up</answer> or rather <answer>Down</answer>", "Down"),
        ("<answer>Up</answer> or <answer>Down", "Up"),
        ("<answer>Up <answer>Down</answer>", "Down"),
        ("<answer>Up</answer></answer>", "Up</answer>"),
        ("<answer></answer>", ""),
        ("<answer>\n3\n4\n</answer>", "3\n4"),
        ("</answer><answer>Up", None),
        ("<ANSWER>Up</ANSWER>", None),
        ("Up", None),
        ("", None),
    ],
)
def test_the_answer_is_in_the_last_closed_tag(text: str, answer: str | None) -> None:
    assert read_answer(text, "answer") == answer


def test_a_long_text_loses_its_start() -> None:
    assert read_answer("<answer>Up</answer>" + "x" * MAX_TEXT, "answer") is None
    assert read_answer("x" * 10**7 + "<answer>Up</answer>", "answer") == "Up"


@given(st.text(st.sampled_from("<>/answer|"), max_size=400))
def test_reading_never_raises(text: str) -> None:
    answer = read_answer(text, "answer")
    assert answer is None or answer in text


def test_reading_takes_time_linear_in_the_text() -> None:
    began = time.perf_counter()
    for text in ("<answer>" * 10**6, "</answer>" * 10**6, "<" * 10**7):
        read_answer(text, "answer")
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    ("answer", "actions"),
    [("Up", ["Up"]), ("Up||Down", ["Up", "Down"]), (" Up | Down ", ["Up | Down"]), ("Up || ", ["Up", ""]), ("", [""])],
)
def test_actions_are_between_double_bars(answer: str, actions: list[str]) -> None:
    assert split_actions(answer) == actions


@given(st.text())
def test_what_is_repeated_to_the_policy_is_short_plain_and_on_one_line(text: str) -> None:
    said = shown(text)
    assert len(said) <= 40
    assert set(said) <= set(string.printable) - set("\n\r\t\x0b\x0c")
    if len(text) <= 40 and set(text) <= set(string.ascii_letters + " "):
        assert said == text


def test_the_form_follows_the_tags() -> None:
    plain, bare = TurnSettings(), TurnSettings(think_tag=None, answer_tag="move")
    assert form(plain, "Up") == "<think>...</think><answer>Up</answer>"
    assert form(bare, "Up") == "<move>Up</move>"
    assert spoken(plain, "so", "Up") == "<think>so</think><answer>Up</answer>"
    assert spoken(bare, "so", "Up") == "<move>Up</move>"
    assert tags(plain) == ("<think>", "</think>", "<answer>", "</answer>")
    assert tags(bare) == ("<move>", "</move>")


@pytest.mark.parametrize("fields", [{"answer_tag": "think"}, {"answer_tag": "a b"}, {"think_tag": "<x>"}])
def test_tags_that_cannot_be_told_apart_or_written_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="tag"):
        TurnSettings.model_validate(fields)
