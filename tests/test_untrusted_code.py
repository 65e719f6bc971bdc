"""Nothing that was read is run: no eval, no pickles, no code that comes with a model; read off the source."""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, Qwen2Config

from actors.engine_arguments import engine_arguments
from configs.schema import RunConfig
from learner.models import load_frozen
from orchestration.policy import PolicyError, ensure_policy
from tests.builders import byte_tokenizer
from tests.test_architecture import SOURCES, name_of, parsed

# Of them a call by name runs or unpickles what it is given.
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    ("torch", "load"), ("yaml", "load"), ("yaml", "load_all"), ("yaml", "unsafe_load"), ("yaml", "full_load"),
    ("os", "system"), ("os", "popen"), ("tempfile", "mktemp"), ("joblib", "load"), ("pandas", "read_pickle"),
    ("marshal", "loads"),
}  # fmt: skip
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
# What a rollout actor tells its own environment workers, which run the environment's code anyway: how to make one, and
# the state of an episode, which the actor keeps unread. file -> what it may do with pickles.
PICKLES = {
    "actors/env_workers.py": {"dumps"},
    "envs/worker.py": {"loads"},
    "envs/worker_episodes.py": {"dumps", "loads", "HIGHEST_PROTOCOL"},
}
LOADERS = ("from_pretrained", "from_config", "pipeline", "snapshot_download", "hf_hub_download")


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call))


def keywords(call: ast.Call) -> dict[str | None, object]:
    return {word.arg: word.value.value if isinstance(word.value, ast.Constant) else ... for word in call.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_text_is_run_and_no_pickle_read(path: Path) -> None:
    for call in calls(path):
        called = call.func
        if isinstance(called, ast.Name):
            assert called.id not in CALLS
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            assert (called.value.id, called.attr) not in ATTRIBUTES
        assert keywords(call).get("shell", False) is False
        assert keywords(call).get("allow_pickle", False) is False
    imported = {
        name.split(".")[0]
        for node in ast.walk(parsed(path))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert imported & MODULES == ({"pickle"} if name_of(path) in PICKLES else set())
    used = {
        node.attr
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle"
    }
    assert used == PICKLES.get(name_of(path), set())


def test_code_of_models_is_never_run_and_weights_are_safetensors() -> None:
    found = [
        (name_of(path), ast.unparse(call.func), keywords(call))
        for path in SOURCES
        for call in calls(path)
        if isinstance(call.func, ast.Attribute) and call.func.attr in LOADERS
    ]
    loading = {"actors/chat.py", "learner/export.py", "learner/models.py", "orchestration/rollouts.py"}
    assert {name for name, _, _ in found} == loading
    for _, called, words in found:
        assert words.get("trust_remote_code") is False, called
        assert words.get("use_safetensors") is True or "Tokenizer" in called
    for path in SOURCES:
        assert "trust_remote_code=True" not in path.read_text()
        assert '"trust_remote_code": True' not in path.read_text()


@pytest.mark.parametrize("gpus", [0, 1])
def test_engines_run_no_code_and_read_no_pickle(gpus: int) -> None:
    groups = {"rollout": {"gpus_per_actor": gpus}, "deepspeed": {"gpus_per_rank": gpus}}
    arguments = engine_arguments(RunConfig.model_validate(groups), "policy", 0)
    assert arguments["trust_remote_code"] is False
    assert arguments["load_format"] == "safetensors"


# --- with hands that would do it -------------------------------------------------------------------------------------


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self._file), "w")


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A model of a known type whose weights are a pickle that makes `sprung`."""
    folder = tmp_path / "model"
    Qwen2Config(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"x": Trap(tmp_path / "sprung")}, file)
    return folder


def refusal(folder: Path, key: str = "model.path") -> str:
    groups = {"model": {"path": str(folder)}} if key == "model.path" else {
        "grpo": {"kl": {"coefficient": 0.1, "reference": str(folder)}}}  # fmt: skip
    with pytest.raises(PolicyError) as refused:
        ensure_policy(RunConfig.model_validate(groups), print)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_trap_works(trapped: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):  # as it is no tensor: by then it has been unpickled
        torch.load(trapped / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("key", ["model.path", "grpo.kl.reference"])
def test_pickled_weights_are_refused_before_anything_starts(key: str, trapped: Path, tmp_path: Path) -> None:
    assert refusal(trapped, key).startswith(f"{key}: {trapped} holds its weights as pytorch_model.bin, a pickle")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "name", ["model.pt", "consolidated.00.pth", "x.ckpt", "weights.pkl", "pytorch_model-00001-of-00002.bin"]
)
def test_pickles_of_all_names_are_named(name: str, trapped: Path) -> None:
    (trapped / "pytorch_model.bin").rename(trapped / name)
    assert f"holds its weights as {name}, a pickle" in refusal(trapped)


def test_a_model_without_weights_is_named(trapped: Path) -> None:
    (trapped / "pytorch_model.bin").unlink()
    assert refusal(trapped) == f"model.path: {trapped} holds no weights (*.safetensors)"


def test_whoever_loads_the_model_all_the_same_reads_no_pickle(trapped: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="safetensors"):
        load_frozen(RunConfig.model_validate({"deepspeed": {"packing": False}}), str(trapped))
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_by_the_name_of_safetensors_is_none(trapped: Path, tmp_path: Path) -> None:
    """The learner's layers are read by the same call."""
    (trapped / "pytorch_model.bin").rename(trapped / "model.safetensors")
    with pytest.raises(SafetensorError), safe_open(trapped / "model.safetensors", framework="pt") as file:
        file.keys()
    with pytest.raises(SafetensorError):
        load_frozen(RunConfig.model_validate({"deepspeed": {"packing": False}}), str(trapped))
    assert not (tmp_path / "sprung").exists()


def with_code(folder: Path, sprung: Path, model_type: str) -> None:
    settings = json.loads((folder / "config.json").read_text())
    code = f"open({str(sprung)!r}, 'w')\nfrom transformers import PretrainedConfig\nclass C(PretrainedConfig): pass\n"
    (folder / "code.py").write_text(code)
    settings |= {"model_type": model_type, "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")


def test_a_model_of_code_of_its_own_is_refused_in_one_line(trapped: Path, tmp_path: Path) -> None:
    with_code(trapped, tmp_path / "sprung", "new_thing")
    said = refusal(trapped)
    assert said.startswith(
        f"model.path: {trapped} brings code of its own (auto_map in config.json), which is never run"
    )
    assert "'new_thing'" in said
    with pytest.raises(ValueError, match=r"(?i)custom code|remote code|trust_remote_code|does not recognize"):
        load_frozen(RunConfig.model_validate({"deepspeed": {"packing": False}}), str(trapped))
    assert not (tmp_path / "sprung").exists()


def test_a_known_type_that_brings_code_too_is_taken_without_it(trapped: Path, tmp_path: Path) -> None:
    with_code(trapped, tmp_path / "sprung", "qwen2")
    assert ensure_policy(RunConfig.model_validate({"model": {"path": str(trapped)}}), print) == trapped
    AutoTokenizer.from_pretrained(trapped, trust_remote_code=False)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"[" * 10**5, b"[]", b"\xff\xfe", b'{"auto_map": 1, "model_type": []}', b"\n" * 100]
)
def test_settings_of_a_model_that_cannot_be_read_are_one_line(file: str, content: bytes, trapped: Path) -> None:
    (trapped / "pytorch_model.bin").rename(trapped / "model.safetensors")
    (trapped / "chat_template.jinja").unlink(missing_ok=True)
    (trapped / file).write_bytes(content)
    assert refusal(trapped)
