"""Where a run's policy comes from: the folder that is named, or the cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from configs.environments import PathExplorationSettings
from configs.schema import RunConfig
from envs.base import Failure
from envs.frozen_lake.env import FrozenLake
from orchestration.policy import PolicyError, ensure_policy, policy_digest


def config(**model: Any) -> RunConfig:
    return RunConfig.model_validate({"model": model})


def small(cache: Path, **changes: Any) -> RunConfig:
    warmup = {"layers": 1, "hidden": 32, "heads": 1, "demonstrations": 40, "cache": str(cache), **changes}
    return config(warmup=warmup)


def policy_folder(folder: Path, **tokenizer: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def refusal(path: str) -> str:
    with pytest.raises(PolicyError) as refused:
        ensure_policy(config(path=path), print)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    assert refusal(missing) == f"model.path: {missing} is not a folder, nor a hub id (owner/name)"


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    assert refusal(str(tmp_path)) == f"model.path: {tmp_path} holds no model in Hugging Face format (no config.json)"


def test_a_tokenizer_without_a_chat_template_is_named(tmp_path: Path) -> None:
    folder = policy_folder(tmp_path / "policy")
    assert refusal(str(folder)) == f"model.path: the tokenizer in {folder} has no chat template"


def test_a_complete_folder_and_a_hub_id_pass(tmp_path: Path) -> None:
    folder = policy_folder(tmp_path / "policy", chat_template="{{ messages }}")
    assert ensure_policy(config(path=str(folder)), print) == folder
    assert ensure_policy(config(path="Qwen/Qwen2.5-0.5B-Instruct"), print) == Path("Qwen/Qwen2.5-0.5B-Instruct")


def test_a_policy_is_made_once_for_its_settings_and_anew_for_others(tmp_path: Path) -> None:
    said: list[str] = []
    made = ensure_policy(small(tmp_path), said.append)
    assert len(said) == 2
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert ensure_policy(small(tmp_path), said.append) == made
    assert len(said) == 2
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp
    assert ensure_policy(config(path=str(made)), said.append) == made
    assert ensure_policy(small(tmp_path, skill=0.5), said.append) != made
    assert len(said) == 4


def test_the_place_of_the_cache_is_no_part_of_the_policy(tmp_path: Path) -> None:
    one, other = (ensure_policy(small(tmp_path / name), print) for name in ("one", "other"))
    assert one.name == other.name


def test_a_warm_up_that_does_not_fit_names_the_setting(tmp_path: Path) -> None:
    warmup = small(tmp_path).model.warmup
    with pytest.raises(PolicyError, match=r"^model\.warmup: .*model\.max_model_len is 100$"):
        ensure_policy(config(warmup=warmup.model_dump(), max_model_len=100), print)


def test_a_policy_is_made_anew_when_a_file_it_depends_on_has_changed(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    made = []
    for last in ("Ulm", "Ulm", "Bonn"):
        names.write_text(json.dumps([["Ost", "West"], ["Alb", last]]))
        env = {"name": "path_exploration", "names": str(names), "targets": 2}
        config = small(tmp_path / "cache").model_copy(update={"env": PathExplorationSettings.model_validate(env)})
        made.append(ensure_policy(config, print))
    assert made[0] == made[1] != made[2]


def test_a_demonstration_that_cannot_be_judged_names_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FrozenLake, word: str) -> tuple[str, float]:
        raise Failure("the grader died")

    monkeypatch.setattr(FrozenLake, "_act", broken)
    with pytest.raises(PolicyError, match=r"^model\.warmup: a demonstration could not be judged: the grader died$"):
        ensure_policy(small(tmp_path), print)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_digest_is_of_what_is_loaded(tmp_path: Path) -> None:
    """Where the folder lies, its README and its subfolders do not matter; every file of the policy does."""
    folder = policy_folder(tmp_path / "one", chat_template="x")
    first = policy_digest(folder)
    assert first.startswith("sha256:")
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "README.md").write_text("words")
    (tmp_path / "other" / "runs").mkdir()
    assert policy_digest(tmp_path / "other") == first
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        path = tmp_path / "other" / name
        was = path.read_bytes()
        path.write_bytes(was[:-1] + b"!")  # of the same size
        assert policy_digest(tmp_path / "other") != first, name
        path.write_bytes(was)
    (tmp_path / "other" / "chat_template.jinja").write_text("x")
    assert policy_digest(tmp_path / "other") != first
    (tmp_path / "other" / "chat_template.jinja").rename(tmp_path / "other" / "vocab.txt")
    (tmp_path / "other" / "config.json").rename(tmp_path / "other" / "merges.txt")
    assert policy_digest(tmp_path / "other") != first


def test_the_digest_of_a_hub_id_is_the_id() -> None:
    assert policy_digest(Path("owner/name")) == "id:owner/name"


def test_a_missing_reference_is_named_before_anything_starts(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    kl = {"coefficient": 0.1, "reference": missing}
    with pytest.raises(PolicyError) as refused:
        ensure_policy(RunConfig.model_validate({"grpo": {"kl": kl}}), print)
    assert str(refused.value) == f"grpo.kl.reference: {missing} is not a folder, nor a hub id (owner/name)"
