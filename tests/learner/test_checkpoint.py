"""The learner's state: what is saved is what was trained, and any number of ranks takes it up exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from learner.learner_state import StateError, check_there
from tests.learner.checkpoint_ranks import VARIANTS, loss_of, run_ranks, settings_of

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes that neither two nor three ranks can share evenly."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("policy")
    config = Qwen2Config(
        vocab_size=131, hidden_size=64, intermediate_size=77, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks saved, one folder a variant: see `checkpoint_ranks.saving`."""
    root = tmp_path_factory.mktemp("saved")
    run_ranks(2, "saving", policy, root)
    return root


def state_of(folder: Path) -> dict[str, Any]:
    """state.json, with the checksums of all files: equal states are equal here and nowhere else."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_going_on_from_a_saved_state_is_as_if_nothing_had_been(saved: Path, variant: str) -> None:
    folder = saved / variant
    assert state_of(folder / "resumed" / "3") == state_of(folder / "straight" / "3")
    assert state_of(folder / "resumed" / "5") == state_of(folder / "straight" / "5")
    assert state_of(folder / "rewound" / "3") == state_of(folder / "straight" / "3")
    assert state_of(folder / "straight" / "3") != state_of(folder / "straight" / "5")


@pytest.mark.parametrize("ranks", [1, 3])
def test_another_number_of_ranks_takes_up_the_same_state(saved: Path, policy: Path, ranks: int) -> None:
    run_ranks(ranks, "loading", policy, saved)
    for variant in VARIANTS:
        folder = saved / variant
        assert state_of(folder / f"on-{ranks}" / "3") == state_of(folder / "straight" / "3"), variant
        assert state_of(folder / f"on-{ranks}" / "5")["steps"] == 5
        if settings_of(variant, ranks).model.dtype == "float32":
            straight, here = tensors_of(folder / "straight" / "5"), tensors_of(folder / f"on-{ranks}" / "5")
            for name, tensor in straight.items():
                torch.testing.assert_close(here[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_the_state_is_that_of_plain_torch(saved: Path, policy: Path) -> None:
    from learner.models import load_policy

    config = settings_of("float32", 1)
    model: Any = load_policy(config, str(policy)).train()
    named = dict(model.named_parameters())
    start = tensors_of(saved / "float32" / "straight" / "0")
    assert {f"{name}:weight" for name in named} == set(start)
    assert all(torch.equal(start[f"{name}:weight"], p) for name, p in named.items())
    optim = config.optim
    optimizer = torch.optim.AdamW(
        named.values(), lr=optim.lr, betas=(optim.beta1, optim.beta2), weight_decay=optim.weight_decay
    )
    for number in range(3):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        torch.nn.utils.clip_grad_norm_(named.values(), optim.max_grad_norm)
        optimizer.step()
    there = tensors_of(saved / "float32" / "straight" / "3")
    assert len(there) == 3 * len(named)
    for name, parameter in named.items():
        torch.testing.assert_close(there[f"{name}:weight"], parameter.detach(), rtol=1e-4, atol=1e-5)
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(there[f"{name}:{key}"], optimizer.state[parameter][key], rtol=1e-3, atol=1e-6)


def test_files_say_what_they_hold(saved: Path) -> None:
    state = state_of(saved / "float32" / "straight" / "3")
    assert (state["format"], state["version"], state["steps"]) == (1, 3, 3)
    assert [layer["name"] for layer in state["layers"]] == [f"layer-{n:05d}.safetensors" for n in range(4)]
    assert state["layers"][3]["shapes"] == {"model.norm.weight": [64]}
    before = state_of(saved / "float32" / "straight" / "0")
    assert (before["version"], before["steps"]) == (0, 0)
    assert all(name.endswith(":weight") for name in tensors_of(saved / "float32" / "straight" / "0"))


def test_only_adapters_are_kept_of_a_policy_with_adapters(saved: Path) -> None:
    names = tensors_of(saved / "lora" / "straight" / "3")
    assert names
    assert all("lora_" in name for name in names)


def test_bfloat16_keeps_the_exact_weights(saved: Path) -> None:
    tensors = tensors_of(saved / "bfloat16" / "straight" / "3")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    weights = [tensor for name, tensor in tensors.items() if name.endswith(":weight")]
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in weights)


def test_a_full_disk_on_one_rank_is_said_by_all(policy: Path, tmp_path: Path) -> None:
    run_ranks(2, "disk_full", policy, tmp_path)
    assert state_of(tmp_path / "later")["version"] == 0


def test_a_folder_that_is_gone_is_not_made_anew(policy: Path, tmp_path: Path) -> None:
    run_ranks(2, "folder_gone", policy, tmp_path)
    folder = tmp_path / "there"
    layer = folder / "layer-00001.safetensors"
    layer.write_bytes(layer.read_bytes()[:-1])
    with pytest.raises(
        StateError, match=rf"layer-00001\.safetensors .* has {layer.stat().st_size} bytes here: run\.root"
    ):
        check_there(folder)
    layer.unlink()
    with pytest.raises(StateError, match=r"layer-00001\.safetensors .* is not here: run\.root"):
        check_there(folder)
    (folder / "state.json").unlink()
    with pytest.raises(StateError, match=r"state\.json .* is not here: run\.root"):
        check_there(folder)


def test_what_must_not_be_taken_up_is_refused_by_name(policy: Path, tmp_path: Path) -> None:
    run_ranks(1, "refusals", policy, tmp_path)
    refused = (tmp_path / "refused.txt").read_text().splitlines()
    assert len(refused) == 10
    assert {line.split(":")[0].split(" is ")[0] for line in refused} == {
        *("state.json", "layer-00001.safetensors", "model.norm.weight", "a.weight"),
    }
