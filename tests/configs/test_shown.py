"""Secrets do not get into what is shown and kept, and not into a run's configuration."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import ConfigError, load_config
from configs.shown import MOST_SHOWN, is_secret_name, one_line, redacted, safe, secret_in

KEY = "0f3a9c4be1d27766a5f0"


@pytest.fixture(autouse=True)
def secret_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)


@pytest.mark.parametrize(
    "name",
    ["WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "APIKEY",
     "MLFLOW_TRACKING_PASSWORD", "GITHUB_PAT", "my_secret", "RAY_AUTH_TOKEN", "SECRETS", "NEPTUNE_API_TOKEN"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["PATH", "HOME", "TOKENIZERS_PARALLELISM", "SSH_AUTH_SOCK", "KEYBOARD", "RAY_ADDRESS", "MONKEY_BARS", "PATH_"],
)
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"401 for key {KEY}!", "401 for key [WANDB_API_KEY]!"),
        (f"{KEY}{KEY}", "[WANDB_API_KEY][WANDB_API_KEY]"),
        ("https://me:pw@host/x?y=1", "https://[...]@host/x?y=1"),
        ("proxy http://token@proxy:80 and http://a/b@c", "proxy http://[...]@proxy:80 and http://a/b@c"),
        ("GET https://x/y?token=abcdef&z=1", "GET https://x/y?token=[...]&z=1"),
        ("override observe.wandb_api_key=abc: unknown key", "override observe.wandb_api_key=[...] unknown key"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer [...]"),
        ("hf_" + "a" * 30, "[...]"),
        ("ghp_" + "a1" * 18 + " sk-" + "b" * 40 + " AKIA" + "C" * 16, "[...] [...] [...]"),
        ("rollout.tokens_per_turn=48 run.max_tokens=12345678", "rollout.tokens_per_turn=48 run.max_tokens=12345678"),
        ("hf_short, a@b.c, //x, half_life_of_a_very_long_name", "hf_short, a@b.c, //x, half_life_of_a_very_long_name"),
    ],
)
def test_what_is_hidden(text: str, said: str) -> None:
    assert redacted(text) == said
    assert safe(text) == said


def test_short_words_and_places_are_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("A_TOKEN", "disabled")
    monkeypatch.setenv("B_TOKEN", "abc1")
    monkeypatch.setenv("C_KEY", str(tmp_path))
    assert redacted(f"disabled abc1 {tmp_path}") == f"disabled abc1 {tmp_path}"


def test_the_longest_secret_is_hidden_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", KEY[:10])
    assert redacted(KEY) == "[WANDB_API_KEY]"


@given(st.text(max_size=200))
def test_any_text_is_one_line(text: str) -> None:
    assert safe(text).isprintable() or not text
    assert len(one_line(text, 50)) <= 50
    assert one_line(text, 10**6) == text or not text.isprintable()
    assert redacted(redacted(text)) == redacted(text)


def test_a_cut_does_not_halve_a_secret() -> None:
    for at in range(MOST_SHOWN - 2 * len(KEY), MOST_SHOWN + 5):
        assert KEY[:6] not in safe("x" * at + KEY)


@pytest.mark.parametrize(
    "unit", ["a", "://", "://a", "a://b:c@", "hf_", "Bearer ", "token=", "AKIA", "_", "sk-a", "\n", "[...]"]
)
def test_hostile_texts_are_looked_through_at_once(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    began = time.perf_counter()
    redacted(text)
    secret_in(text)
    assert len(safe(text)) <= MOST_SHOWN
    assert time.perf_counter() - began < 2


# --- configurations --------------------------------------------------------------------------------------------------

SECRETS = {
    "https://me:hunter2@hub/x": "user or password of an address",
    KEY: "the value of WANDB_API_KEY",
    "hf_" + "Q" * 34: "an access token",
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("path", ["model.path", "run.root", "env.levels", "model.warmup.cache"])
def test_a_configuration_with_a_secret_is_refused_without_repeating_it(path: str, secret: str, tmp_path: Path) -> None:
    overrides = ["env={name: sokoban}"] if path == "env.levels" else []
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*overrides, f"{path}=x/{secret}"])
    (line,) = caught.value.problems
    assert f"{path}: holds {SECRETS[secret]}, which would be saved with the run" in line
    assert secret not in line
    assert "hunter2" not in line
    file = tmp_path / "x.yaml"
    group, _, rest = path.partition(".")
    nested = "".join(f"{{{key}: " for key in rest.split(".")) + f'"{secret}"' + "}" * len(rest.split("."))
    name = "name: sokoban, " if path == "env.levels" else ""
    file.write_text(f"{group}: {nested.replace('{', '{' + name, 1)}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, [])
    assert str(caught.value).startswith(f"{file}: {path}: holds ")
    assert secret not in str(caught.value)


@pytest.mark.parametrize("key", ["rollout.actors", "run.name", "observe.wandb_key", "nonsense"])
def test_other_problems_do_not_repeat_a_secret_either(key: str) -> None:
    for secret in SECRETS:
        with pytest.raises(ConfigError) as caught:
            load_config(None, [f"{key}=*{secret}" if key == "nonsense" else f"{key}={secret} x"])
        assert secret not in str(caught.value)
        assert "hunter2" not in str(caught.value)
