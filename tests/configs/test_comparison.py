"""Comparison files: what they hold, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.comparison import load_comparison
from configs.load import ConfigError

GOOD = """
base: ../quickstart.yaml
tokens: 40_000
seeds: [0, 2]
overrides: [eval.every=2]
methods:
  plain: []
  wide: {overrides: [optim.lr=1e-4], after: plain}
evaluate: {modes: [plain, guided], samples: 8}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str) -> list[str]:
    path = written(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_comparison(path)
    return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    comparison = load_comparison(written(tmp_path, GOOD))
    assert (comparison.base, comparison.tokens, comparison.seeds) == ("../quickstart.yaml", 40_000, [0, 2])
    assert comparison.methods["plain"].overrides == []
    assert (comparison.methods["wide"].overrides, comparison.methods["wide"].after) == (["optim.lr=1e-4"], "plain")
    assert comparison.evaluate is not None
    assert (comparison.evaluate.modes, comparison.evaluate.samples, comparison.evaluate.episodes) == (
        ["plain", "guided"], 8, 64,
    )  # fmt: skip


def test_methods_come_behind_those_they_build_on(tmp_path: Path) -> None:
    text = "base: x\ntokens: 1\nseeds: [0]\nmethods: {c: {after: b}, a: [], b: {after: d}, d: []}"
    assert load_comparison(written(tmp_path, text)).in_order() == ["a", "d", "b", "c"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("tokens:", "tokns:", ["tokens: is missing", "tokns: unknown key; did you mean 'tokens'?"]),
        ("40_000", "0", ["tokens: should be greater than 0, got 0"]),
        ("40_000", "many", ['tokens: should be a valid integer, got "many"']),
        ("[0, 2]", "[]", ["seeds: List should have at least 1 item after validation, not 0, got []"]),
        ("[0, 2]", "[0, -1]", ["seeds.1: should be greater than or equal to 0, got -1"]),
        ("[0, 2]", "[2, 0, 2]", ["seeds ([2, 0, 2]) name one twice"]),
        ("after: plain", "aftr: plain", ["methods.wide.aftr: unknown key; did you mean 'after'?"]),
        ("after: plain", "after: plian", ["methods.wide.after: no method \"plian\"; did you mean 'plain'?"]),
        ("after: plain", "after: wide", ["methods.wide.after: wide -> wide is a circle"]),
        ("plain: []", "plain: {after: wide}", [
            "methods.plain.after: plain -> wide -> plain is a circle",
            "methods.wide.after: wide -> plain -> wide is a circle",
        ]),
        ("plain: []", "plain: 3", ["methods.plain: is a group of keys, got 3"]),
        ("plain: []", "plain: [3]", ["methods.plain.overrides.0: should be a valid string, got 3"]),
        ("plain: []", "../x: []", ["methods.../x: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', "
                                   'got "../x"']),
        ("optim.lr=1e-4", "run.seed=3", ["methods.wide.overrides: run.seed is set by the comparison itself"]),
        ("optim.lr=1e-4", "model.path=x", ["methods.wide.overrides: model.path is set by the comparison itself"]),
        ("eval.every=2", "run.max_tokens=3", ["overrides: run.max_tokens is set by the comparison itself"]),
        ("samples: 8", "overrides: [run.seed=1]", ["evaluate.overrides: run.seed is set by the comparison itself"]),
        ("samples: 8", "overrides: [eval.episodes=3, eval.samples=2]", [
            "evaluate.overrides: eval.episodes is set by the comparison itself",
            "evaluate.overrides: eval.samples is set by the comparison itself",
        ]),
        ("plain: []", "plain: []\n  start: []", [
            "methods.start: is the name of the policy of `base`, choose another one"
        ]),
        ("[plain, guided]", "[plain, guided, plain]", [
            'evaluate.modes (["plain", "guided", "plain"]) name one twice'
        ]),
        ("samples: 8", "sampels: 8", ["evaluate.sampels: unknown key; did you mean 'samples'?"]),
        ("[plain, guided]", "[plan]", [
            "evaluate.modes.0: should be 'plain', 'guided' or 'sequential', got \"plan\""
        ]),
        ("[plain, guided]", "[]", ["evaluate.modes: List should have at least 1 item after validation, not 0, got []"]),
        ("evaluate:", "seeds:", ["line 9: duplicate key 'seeds', first on line 4",
                                 'seeds: should be a valid list, got {"modes": ["plain", "guided"], "samples": 8}']),
    ],
)  # fmt: skip
def test_a_mistake_is_a_line_that_names_it(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    assert GOOD.count(old) == 1
    assert sorted(problems(tmp_path, GOOD.replace(old, new))) == sorted(expected)


def test_a_policy_can_be_named_where_none_is_taken_over(tmp_path: Path) -> None:
    text = GOOD.replace("plain: []", "plain: [model.path=some/folder]")
    assert load_comparison(written(tmp_path, text)).methods["plain"].overrides == ["model.path=some/folder"]


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"d\.yaml: no such file; did you mean .*c\.yaml"):
        load_comparison(tmp_path / "d.yaml")
