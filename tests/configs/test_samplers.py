"""Samplers in a configuration: a union inside a union (`sampler.root`), and what is said of a wrong key there."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import ConfigError, load_config, to_yaml
from configs.samplers import DdeSettings, ParallelSettings, SesaSettings


def sampler_of(folder: Path, text: str, *overrides: str) -> DdeSettings:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_config(path, overrides)
    copy = folder / "copy.yaml"
    copy.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(copy, []) == config
    assert isinstance(config.sampler, DdeSettings)
    return config.sampler


def test_the_root_of_dde_is_a_sampler_of_its_own(tmp_path: Path) -> None:
    assert sampler_of(tmp_path, "sampler: {name: dde}").root == ParallelSettings()
    dde = sampler_of(tmp_path, "sampler: {name: dde, branches: 4, root: {name: sesa, sketches: 6, train_on: both}}")
    assert (dde.branches, dde.root) == (4, SesaSettings(sketches=6, train_on="both"))


def test_a_root_without_a_name_is_the_default_one(tmp_path: Path) -> None:
    assert sampler_of(tmp_path, "sampler: {name: dde, root: {group_size: 4}}").root == ParallelSettings(group_size=4)
    assert sampler_of(tmp_path, "sampler: {name: dde}", "sampler.root.group_size=4").root == ParallelSettings(
        group_size=4
    )


def test_the_root_can_be_chosen_and_set_by_overrides(tmp_path: Path) -> None:
    assert sampler_of(tmp_path, "sampler: {name: dde}", "sampler.root.name=sesa").root == SesaSettings()
    dde = sampler_of(tmp_path, "", "sampler.name=dde", "sampler.root.name=sesa", "sampler.root.sketches=4")
    assert dde.root == SesaSettings(sketches=4)
    whole = sampler_of(tmp_path, "sampler: {name: dde}", "sampler.root={name: sesa, sketches: 4}")
    assert whole == dde


@pytest.mark.parametrize(("features", "count"), [("depth", 1), ("depth+surprise", 2), ("depth+surprise+progress", 3)])
def test_features_are_counted(features: str, count: int) -> None:
    assert DdeSettings.model_validate({"features": features}).feature_count == count


@pytest.mark.parametrize(
    ("sampler", "overrides", "line"),
    [
        (
            "{name: dde, root: {sketches: 4}}",
            (),
            "x.yaml: sampler.root.sketches: unknown key for 'parallel'; it belongs to 'sesa', "
            "but sampler.root.name is 'parallel'",
        ),
        (
            "{name: dde, root: {group_size: 4}}",
            ("sampler.root.name=sesa",),
            "x.yaml: sampler.root.group_size: unknown key for 'sesa'; it belongs to 'parallel', "
            "but sampler.root.name is 'sesa' (by override sampler.root.name=sesa)",
        ),
        (
            "{name: dde, sketches: 4}",
            (),
            "x.yaml: sampler.sketches: unknown key for 'dde'; it belongs to 'sesa', but sampler.name is 'dde'",
        ),
        (
            "{name: parallel}",
            ("sampler.root.name=sesa",),
            "override sampler.root.name=sesa: sampler.root: unknown key for 'parallel'; it belongs to 'dde', "
            "but sampler.name is 'parallel'",
        ),
        (
            "{name: dde, root: {name: sesa, sketchs: 4}}",
            (),
            "x.yaml: sampler.root.sketchs: unknown key; did you mean 'sketches'?",
        ),
        (
            "{name: dde}",
            ("sampler.root.grup_size=4",),
            "override sampler.root.grup_size=4: sampler.root.grup_size: unknown key; "
            "did you mean 'sampler.root.group_size'?",
        ),
        (
            "{name: dde, root: {name: sessa}}",
            (),
            "x.yaml: sampler.root.name: should be one of 'parallel', 'sesa', got \"sessa\"; did you mean 'sesa'?",
        ),
        (
            "{name: dde, root: {name: dde}}",
            (),
            "x.yaml: sampler.root.name: should be one of 'parallel', 'sesa', got \"dde\"",
        ),
        ("{name: dde, root: sesa}", (), 'x.yaml: sampler.root: is a group of keys, got "sesa"'),
        (
            "{name: dde}",
            ("sampler.root=sesa",),
            'override sampler.root=sesa: sampler.root: is a group of keys, got "sesa"; set one of them, '
            "such as sampler.root.name",
        ),
        (
            "{name: dde, root: {name: sesa, sketches: 1}}",
            (),
            "x.yaml: sampler.root.sketches: should be greater than or equal to 2, got 1",
        ),
        (
            "{name: dde, root: {name: [sesa]}}",
            (),
            "x.yaml: sampler.root.name: should be one of 'parallel', 'sesa', got [\"sesa\"]; did you mean 'sesa'?",
        ),
        (
            "{name: dde, min_labels: 20, window: 10}",
            (),
            "x.yaml: sampler: min_labels (20) must be at most window (10), or nothing fits",
        ),
        ("{name: dde, gamma: -1}", (), "x.yaml: sampler.gamma: should be greater than or equal to 0, got -1"),
        (
            "{name: dde, rule: lerned}",
            (),
            "x.yaml: sampler.rule: should be 'learned', 'random', 'root' or 'oracle', got \"lerned\"",
        ),
    ],
)
def test_a_wrong_key_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, overrides: tuple[str, ...], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(f"sampler: {sampler}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(Path("x.yaml"), overrides)
    assert caught.value.problems == (line,)
