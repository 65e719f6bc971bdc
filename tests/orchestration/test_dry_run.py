"""`--dry-run` of every shipped config, its table of memory, and what a run refuses before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch.distributed
from ray.exceptions import RayError, RaySystemError, RpcError

from orchestration import dry_run, run
from orchestration.cluster import ROOT
from orchestration.placement import Node
from tests.envs.cases import QUESTIONS

CONFIGS = ROOT / "configs"
NO_RUNS = {"cluster", "compare"}  # what starts clusters, comparisons of runs
SHIPPED = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml") if p.parent.name not in NO_RUNS)
SMALL = "quickstart.yaml"
MODEL: dict[str, Any] = {
    "model_type": "qwen2", "num_hidden_layers": 24, "hidden_size": 896, "num_attention_heads": 14,
    "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151_936, "tie_word_embeddings": True,
}  # fmt: skip
ON_GPUS = ["rollout.gpus_per_actor=1", "deepspeed.gpus_per_rank=1", "model.dtype=bfloat16"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A data set that needs no network."""
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in QUESTIONS))
    return file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    return folder


def called(name: str, *arguments: str) -> int:
    return run.main(["--config", str(CONFIGS / name), *arguments])


def lines_of(text: str) -> list[str]:
    return [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_config_can_be_planned(
    name: str, questions: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    data = [f"env.data={questions}", "env.held_out_data=null", "env.subset=null"] if "/math" in name else []
    # The policy that a study goes on from is another run's.
    there = ["model.path=null"] if "revive" in name else []
    assert called(name, "--dry-run", *data, *there) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    on_gpus = name.startswith("gpu/")
    [head] = [line for line in lines_of(said) if line.startswith("memory of each")]
    assert ("GPU" in head, "Qwen2.5" in head) == (on_gpus, on_gpus)


def test_the_table_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert called("gpu/8_gpus.yaml", "--dry-run") == 0
    rows = [line.split() for line in lines_of(capsys.readouterr().out) if line.startswith("  ") and "cache" not in line]
    sums = [float(row[0]) for row in rows if "most" in row]
    tables: list[list[float]] = []
    for row in rows:
        if "most" in row:
            tables.append([])
        else:
            tables[-1].append(float(row[0]))
    assert len(sums) == 3
    # The cache's own row holds that word; it is what the engine's sum lacks.
    assert sum(tables[0]) == pytest.approx(sums[0], abs=0.05)
    assert sum(tables[2]) == pytest.approx(sums[2], abs=0.05)
    assert tables[0] == sorted(tables[0], reverse=True)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["cluster.gpu_memory_gib=8", "rollout.gpu_memory_share=0.5", "deepspeed.ranks=1",
             "deepspeed.tokens_per_micro_batch=512"],
            # 16 bytes a parameter and 8 while the optimizer steps, a context of 1 and a bucket.
            "a learner rank needs 12.05 GiB of 8.00 (cluster.gpu_memory_gib) while stepping; the largest term is "
            "optimizer state with 5.52 GiB: raise deepspeed.ranks or set deepspeed.offload=optimizer",
        ),
        (
            ["cluster.gpu_memory_gib=20", "deepspeed.ranks=8", "deepspeed.tokens_per_micro_batch=32768"],
            "the largest term is activations with 4",
        ),
        (
            ["cluster.gpu_memory_gib=20", "deepspeed.tokens_per_micro_batch=32768",
             "deepspeed.gradient_checkpointing=true"],
            "the largest term is logits with 28.13 GiB: lower deepspeed.tokens_per_micro_batch",
        ),
        (
            ["cluster.gpu_memory_gib=24", "rollout.gpu_memory_share=1", "deepspeed.tokens_per_micro_batch=512"],
            # All of the GPU, captured graphs of 1, two buckets of 0.27 and a layer.
            "a rollout actor needs 24.57 GiB of 24.00 (cluster.gpu_memory_gib) while taking weights; the largest term "
            "is KV cache with 20.42 GiB: lower rollout.gpu_memory_share",
        ),
        (
            ["cluster.gpu_memory_gib=24", "rollout.gpu_memory_share=0.1", "deepspeed.tokens_per_micro_batch=512"],
            "GiB of 2.40 (rollout.gpu_memory_share of cluster.gpu_memory_gib) while starting; the largest term is",
        ),
        (
            ["rollout.tensor_parallel=3"],
            "rollout.tensor_parallel (3) does not divide the model's 14 attention heads, 2 key-value heads, "
            "feed-forward width of 4864, vocabulary of 151936 (padded): take 1, 2",
        ),
        (
            ["rollout.tensor_parallel=14"],  # heads alone would do
            "does not divide the model's feed-forward width of 4864, vocabulary of 151936 (padded): take 1, 2",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry", [True, False])
def test_what_cannot_fit_is_one_line(
    dry: bool, overrides: list[str], says: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    arguments = [*ON_GPUS, f"model.path={model}", f"run.root={root}", *overrides]
    assert called(SMALL, *arguments, *(["--dry-run"] if dry else [])) == 2
    printed = capsys.readouterr()
    [line] = printed.err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert bool(lines_of(printed.out)) == dry
    assert not root.exists()


class Hub:
    """Hugging Face's, with a cache on this machine; `there`: whether it can be reached."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path, there: bool = True) -> None:
        self._file, self._there, self.asked = file, there, 0
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self._download)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", self._cached)

    def _download(self, model: str, name: str) -> str:
        assert (model, name) == ("OWNER/NAME", "config.json")
        self.asked += 1
        if not self._there:
            raise OSError("check your connection")
        return str(self._file)

    def _cached(self, model: str, name: str) -> str | None:
        return str(self._file) if self.asked and self._there else None


def test_the_shape_of_a_hub_id_is_looked_up_before_engines_are_cut_in_parts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    hub = Hub(monkeypatch, model / "config.json")
    started = [*ON_GPUS, "model.path=OWNER/NAME", f"run.root={root}"]
    assert called(SMALL, *started, "rollout.tensor_parallel=3") == 2
    assert "rollout.tensor_parallel (3) does not divide the model's 14 attention heads" in capsys.readouterr().err
    assert called(SMALL, *started, "cluster.gpu_memory_gib=1") == 2
    assert "the largest term is" in capsys.readouterr().err
    assert hub.asked == 1
    assert not root.exists()


@pytest.mark.skipif(torch.distributed.is_nccl_available(), reason="this torch has NCCL")
def test_a_run_says_what_it_cannot_look_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, tmp_path, there=False)
    started = [*ON_GPUS, "model.path=OWNER/NAME", f"run.root={tmp_path / 'runs'}"]
    assert called(SMALL, *started) == 2  # goes as far as the missing NCCL
    assert (hub.asked, capsys.readouterr().out) == (0, "")
    assert called(SMALL, *started, "rollout.tensor_parallel=3") == 2
    said = capsys.readouterr()
    assert said.out == (
        "warning: whether rollout.tensor_parallel (3) divides the model is not checked: engines will say so\n"
    )
    assert "has no NCCL" in said.err


@pytest.mark.skipif(torch.distributed.is_nccl_available(), reason="this torch has NCCL")
def test_gpus_without_nccl_are_refused_before_anything_starts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    assert called(SMALL, *ON_GPUS, f"model.path={model}", f"run.root={root}") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        "error: deepspeed.gpus_per_rank (1): the installed torch has no NCCL; GPUs need the CUDA lock: "
        "FLAVOUR=cuda bash requirements/setup.sh"
    )
    assert not root.exists()
    assert called(SMALL, "--dry-run", *ON_GPUS, f"model.path={model}") == 0


@pytest.mark.parametrize(
    ("size", "parts", "says"),
    [
        (
            "1.5B",
            6,
            "does not divide the model's feed-forward width of 8960, vocabulary of 151936 (padded): take 1, 2, 4",
        ),
        ("3B", 5, "take 1, 2, 4, 8, 16"),
        ("7B", 7, "does not divide the model's 4 key-value heads, feed-forward width of 18944, vocabulary"),
        ("7B", 14, "take 1, 2, 4"),
    ],
)
def test_an_engine_in_parts_that_vllm_would_refuse_is_refused(
    size: str, parts: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"model.path=Qwen/Qwen2.5-{size}-Instruct"
    assert called("gpu/8_gpus.yaml", "--dry-run", model, f"rollout.tensor_parallel={parts}") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: rollout.tensor_parallel ({parts}) ")
    assert says in line


@pytest.mark.parametrize(("size", "parts"), [("0.5B", 2), ("1.5B", 4), ("3B", 16), ("7B", 4)])
def test_an_engine_in_parts_that_vllm_takes_is_taken(size: str, parts: int) -> None:
    model = f"model.path=Qwen/Qwen2.5-{size}-Instruct"
    assert called("gpu/8_gpus.yaml", "--dry-run", model, f"rollout.tensor_parallel={parts}") == 0


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("where", ["cluster.address", "RAY_ADDRESS"])
def test_ray_client_is_refused_before_anything_starts(
    where: str, dry: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, client = tmp_path / "runs", "ray://head:10001"
    arguments = [*(["--dry-run"] if dry else []), f"run.root={root}", "cluster.placement_timeout_s=0.1"]
    if where == "RAY_ADDRESS":
        monkeypatch.setenv(where, client)
    else:
        arguments.append(f"{where}={client}")
    assert called(SMALL, *arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{where}: {client} is an address of Ray Client, through which no run goes: submit the run as a job" in line
    assert not root.exists() or not list(root.iterdir())


@pytest.mark.parametrize("error", [RaySystemError("the GCS is gone"), RpcError("no\nanswer", 14)])
def test_a_cluster_that_does_not_say_what_it_has_is_one_line(
    error: RayError, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_nodes() -> list[Node]:
        raise error

    monkeypatch.setattr(dry_run, "connect", lambda _: "")
    monkeypatch.setattr(dry_run, "cluster_nodes", no_nodes)
    assert called(SMALL, "--dry-run", "cluster.address=head:6379") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the cluster at head:6379 does not say what it has: ")


def test_all_that_cannot_fit_is_said(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(SMALL, "--dry-run", *ON_GPUS, f"model.path={model}", "cluster.gpu_memory_gib=1") == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_reference_that_cannot_be_loaded_beside_the_policy_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Cut into sixteen it would fit: 18.4 GiB. DeepSpeed moves the whole of it to every rank's GPU first."""
    small = ["deepspeed.ranks=16", "rollout.actors=16", "cluster.gpu_memory_gib=22", "sync.bucket_mib=64"]
    small += ["deepspeed.tokens_per_micro_batch=4096", "rollout.gpu_memory_share=0.8", "rollout.tensor_parallel=4"]
    assert called("gpu/4x8_gpus.yaml", "--dry-run", *small) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        "error: a learner rank needs 22.38 GiB of 22.00 (cluster.gpu_memory_gib) while loading the reference policy; "
        "the largest term is whole reference policy with 14.19 GiB: raise deepspeed.ranks, set "
        "deepspeed.offload=optimizer or set grpo.kl.coefficient=0"
    )
    assert called("gpu/4x8_gpus.yaml", "--dry-run", *small, "grpo.kl.coefficient=0") == 0


def test_an_engine_and_its_rank_are_planned_on_one_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert called("gpu/single_24gb.yaml", "--dry-run") == 0
    said = lines_of(capsys.readouterr().out)
    assert "1 x learner rank with a rollout actor: 5 CPU, 1 GPU each" in said


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ([], "on this machine"),
        (["cluster.address=head:6379"], "on the node where the run is started, of a Ray job the head"),
    ],
)
def test_the_driver_and_the_queue_are_in_the_plan(
    address: list[str], where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(dry_run, "connect", lambda _: "")
    monkeypatch.setattr(dry_run, "cluster_nodes", lambda: [Node("head", {"CPU": 8.0}, {"CPU": 8.0})])
    assert called(SMALL, "--dry-run", *address, "queue.max_mib=50") == 0
    said = lines_of(capsys.readouterr().out)
    [number] = [i for i, line in enumerate(said) if "driver" in line]
    assert said[number - 1].startswith("in all: ")
    assert said[number] == (
        f"1 x driver with the replay queue: 0 CPU, 0 GPU, up to 50 MiB of groups (queue.max_mib), {where}"
    )
    assert "; left " in said[number + 1]


def test_without_the_memory_of_a_gpu_nothing_is_compared(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = "deepspeed.tokens_per_micro_batch=1000000"
    assert called(SMALL, "--dry-run", *ON_GPUS, f"model.path={model}", tokens) == 0
    said = "\n".join(lines_of(capsys.readouterr().out))
    assert " of " not in said.split("most while")[0].rpartition("\n")[2]
    assert "cluster.gpu_memory_gib says what it will be" in said


@pytest.mark.parametrize(("path", "why"), [("OWNER/NAME", "is not on this machine"), ("{}", "vocab_size is missing")])
def test_a_model_of_unknown_shape_is_planned_without_memory(
    path: str, why: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "config.json").write_text(json.dumps({k: v for k, v in MODEL.items() if k != "vocab_size"}))
    assert called(SMALL, "--dry-run", f"model.path={path.format(model)}") == 0
    said = lines_of(capsys.readouterr().out)
    [line] = [line for line in said if "memory" in line]
    assert line.startswith("memory is not estimated: ")
    assert why in line
    assert not any("tensor_parallel" in line for line in said)


def test_parts_of_a_model_of_unknown_shape_are_said_to_be_unchecked(capsys: pytest.CaptureFixture[str]) -> None:
    assert called(SMALL, "--dry-run", *ON_GPUS, "model.path=OWNER/NAME", "rollout.tensor_parallel=3") == 0
    [line] = [line for line in lines_of(capsys.readouterr().out) if "tensor_parallel" in line]
    assert line.startswith("whether rollout.tensor_parallel (3) divides the model is not checked")
