"""How many parameters a model has: as published, as transformers builds it, and what a config.json may lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from orchestration.shapes import KNOWN, ModelShape, ShapeError, parsed, shape_in, shape_of

TINY = ModelShape(
    layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocabulary=32, tied=False, qkv_bias=True
)
SETTINGS: dict[str, Any] = {
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 32,
}


def config(**model: Any) -> RunConfig:
    return RunConfig.model_validate({"model": model})


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("0.5B", 494_032_768), ("1.5B", 1_543_714_304), ("3B", 3_085_938_688), ("7B", 7_615_616_512)],
)
def test_known_models_have_the_parameters_they_are_published_with(size: str, parameters: int) -> None:
    assert KNOWN[f"Qwen/Qwen2.5-{size}-Instruct"].parameters == parameters


def test_a_count_by_hand() -> None:
    # q 8*8 + 8, k and v 8*4 + 4 each, o 8*8, gate, up and down 8*16 each, two norms of 8
    layer = 72 + 2 * 36 + 64 + 3 * 128 + 16
    assert TINY.layer_parameters == layer
    assert TINY.parameters == 2 * 32 * 8 + 2 * layer + 8
    assert TINY.largest_parameter == 256


def test_adapters_by_hand() -> None:
    # Inputs and outputs of q and v: 8 + 8, 8 + 4.
    assert TINY.adapter_parameters(4, "q_proj, v_proj") == 2 * 4 * (16 + 12)
    assert TINY.adapter_parameters(1, "all-linear") == 2 * (16 + 12 + 12 + 16 + 3 * 24)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 6}),
        ("qwen3", {"head_dim": 4, "attention_bias": True}),
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"head_dim": 6}),
    ],
)
def test_as_many_parameters_as_transformers_makes(kind: str, settings: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoConfig.for_model(**SETTINGS | settings | {"model_type": kind})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    assert parsed(made.to_dict()).parameters == sum(p.numel() for p in model.parameters())


def test_what_may_be_left_out() -> None:
    shape = parsed({key: value for key, value in SETTINGS.items() if key != "num_key_value_heads"})
    assert (shape.kv_heads, shape.head_dim, shape.tied) == (2, 4, False)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ShapeError, match=f"^{key} is missing$"):
        parsed({name: value for name, value in SETTINGS.items() if name != key})


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, [8]])
def test_what_is_no_count_is_named(value: Any) -> None:
    with pytest.raises(ShapeError, match="hidden_size: a count is expected"):
        parsed(SETTINGS | {"hidden_size": value})


@pytest.mark.parametrize("kind", ["mamba", None, ["qwen2"]])
def test_other_types_are_named(kind: Any) -> None:
    with pytest.raises(ShapeError, match="model_type"):
        parsed(SETTINGS | {"model_type": kind})


def test_a_folder_counts_before_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "Qwen/Qwen2.5-0.5B-Instruct"
    assert shape_of(config(path=name)).layers == 24
    Path(name).mkdir(parents=True)
    (Path(name) / "config.json").write_text(json.dumps(SETTINGS))
    assert shape_of(config(path=name)) == TINY


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 10**5])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ShapeError, match=str(tmp_path)):
        shape_in(tmp_path / "config.json")


def test_a_model_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="OWNER/NAME is not on this machine"):
        shape_of(config(path="OWNER/NAME"))
    with pytest.raises(ShapeError, match="cannot be read"):
        shape_of(config(path=str(tmp_path)))
    with pytest.raises(ShapeError, match="~nobody-of-that-name"):
        shape_of(config(path="~nobody-of-that-name/x"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Hugging Face keeps a model OWNER/NAME; empty yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path / "models--OWNER--NAME"


def test_a_model_that_was_downloaded_is_looked_at_there(cache: Path) -> None:
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    with pytest.raises(ShapeError, match="OWNER/NAME is not on this machine"):
        shape_of(config(path="OWNER/NAME"))  # without its config.json
    (snapshot / "config.json").write_text(json.dumps(SETTINGS))
    assert shape_of(config(path="OWNER/NAME")) == TINY
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(ShapeError, match=r"abc/config\.json: model_type"):
        shape_of(config(path="OWNER/NAME"))


@pytest.mark.parametrize("path", ["no/such/folder", "../x", "a--b/c", "/x", "x" * 100, "OWNER/NA\0ME"])
def test_what_is_no_hub_id_is_looked_for_nowhere(path: str, cache: Path) -> None:
    with pytest.raises(ShapeError, match=r"^model\.path: "):
        shape_of(config(path=path))


def test_the_small_policy_is_as_large_as_the_warm_up_makes_it() -> None:
    from learner.warmup import _new_model

    class Tokenizer:
        eos_token_id, pad_token_id = 2, 0

        def __len__(self) -> int:
            return 512

    settings = config(warmup={"layers": 2, "hidden": 64, "heads": 2})
    tokenizer: Any = Tokenizer()
    model = _new_model(tokenizer, settings.model.warmup, 128)
    assert shape_of(settings).parameters == sum(p.numel() for p in model.parameters())
