"""What a run is: one frozen tree of settings, one class a group, units in the names or the descriptions.

Loads without torch, ray, vllm or deepspeed. Group knobs live in the group of the part that reads them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs.addresses import RayAddress
from configs.base import Settings
from configs.environments import EnvSettings, FrozenLakeSettings, MathSettings
from configs.nodes import NodeLabels, NodeResources
from configs.objectives import GrpoSettings
from configs.samplers import ParallelSettings, SamplerSettings
from configs.sharing import check_sharing


class StopSettings(Settings):
    """Ends a run early: its metric has been beyond a bound for some updates in a row."""

    metric: str = Field(min_length=1, description="of metrics.jsonl, such as zero_advantage_share")
    at_least: float | None = Field(
        None, description="the metric is beyond the bound at this value or more; give this or at_most"
    )
    at_most: float | None = Field(None, description="the same at this value or less")
    updates: PositiveInt = Field(5, description="updates in a row; those without a value of the metric do not count")

    @model_validator(mode="after")
    def _one_bound(self) -> StopSettings:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give either at_least or at_most: the bound that ends the run")
        return self


class RunSettings(Settings):
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder under root; default: config name and time"
    )
    root: str = Field("runs", min_length=1, description="folder that holds the runs")
    seed: int = Field(
        0, ge=0, description="of all draws: tickets, samples; held-out episodes are the same for every seed"
    )
    updates: PositiveInt = Field(100, description="optimizer steps in all")
    max_tokens: PositiveInt | None = Field(
        None, description="generated tokens after which the run ends, if its updates are not done before; empty: none"
    )
    stop: StopSettings | None = Field(None, description="a metric's bound that ends the run before; empty: none")
    hang_timeout_s: PositiveFloat = Field(
        300.0, description="a driver that stands still that long leaves its stacks and ends"
    )


class WarmupSettings(Settings):
    """The small policy made on first use when `model.path` is empty (Qwen2 type)."""

    layers: PositiveInt = Field(4, description="transformer layers")
    hidden: PositiveInt = Field(128, description="width of a layer; a multiple of heads")
    heads: PositiveInt = Field(4, description="attention heads")
    vocabulary: int = Field(512, ge=300, description="upper bound on the trained tokenizer's size")
    demonstrations: PositiveInt = Field(3600, description="conversations the demonstrator plays")
    tokens_per_batch: PositiveInt = Field(1536, description="padded tokens of one optimizer step")
    epochs: PositiveInt = Field(1, description="passes over the demonstrations")
    lr: PositiveFloat = Field(3e-3, description="peak learning rate")
    skill: float = Field(0.15, ge=0, le=1, description="share of careful demonstrations; the rest are careless")
    list_share: float = Field(
        0.0, ge=0, le=1, description="share of demonstrations that are lists of solutions (path_exploration)"
    )
    list_length: int = Field(6, ge=2, description="solutions in such a list")
    seed: int = Field(0, ge=0, description="of the demonstrations and the initial weights")
    cache: str = Field("~/.cache/sesa-on-ray", min_length=1, description="folder of made policies, kept by content")

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> WarmupSettings:
        if self.hidden % (32 * self.heads):
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of 32 * heads ({self.heads}): "
                "the engine's attention on CPUs takes heads of 32, 64, ... only"
            )
        return self


class LoraSettings(Settings):
    """Low-rank adapters (arXiv 2106.09685) through peft; engines and exports get the merged weights."""

    rank: PositiveInt = Field(16, description="columns of an adapter")
    alpha: PositiveFloat = Field(32.0, description="adapters are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of an adapter's input, while training")
    targets: str = Field("all-linear", min_length=1, description="module names, by comma; all-linear: all but the head")


class ModelSettings(Settings):
    path: str | None = Field(
        None, description="folder or hub id of a Hugging Face causal LM; empty: the warmed-up small policy"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of weights and activations; CPUs: float32")
    lora: LoraSettings | None = Field(None, description="train low-rank adapters only; empty: all weights")
    max_model_len: PositiveInt = Field(512, description="tokens of context and answer together")
    warmup: WarmupSettings = WarmupSettings()


class RolloutSettings(Settings):
    actors: PositiveInt = Field(2, description="rollout actors, one engine each")
    max_actors: PositiveInt | None = Field(
        None, description="actors are added up to this many as the cluster has room; empty: rollout.actors"
    )
    cpus_per_actor: float = Field(1.0, ge=0, description="logical CPUs an actor asks Ray for")
    gpus_per_actor: float = Field(0.0, ge=0, description="for each of the engine's tensor-parallel parts")
    tensor_parallel: PositiveInt = Field(1, description="GPUs that one engine is spread over")
    node_resources: NodeResources = Field({}, description="custom resources of Ray an actor asks for, name to amount")
    node_labels: NodeLabels = Field(
        {}, description="labels of the nodes actors may be on: `value`, `!value`, `in(a, b)`"
    )
    prompts_in_flight: PositiveInt = Field(8, description="tickets one actor works on at once")
    temperature: PositiveFloat = Field(1.0, description="of sampling, while training and judging")
    tokens_per_turn: PositiveInt = Field(48, description="most tokens of one answer")
    max_num_seqs: PositiveInt = Field(256, description="engine: sequences in one step")
    kv_cache_mib: PositiveInt = Field(256, description="engine: memory of the KV cache on CPUs")
    gpu_memory_share: float = Field(0.85, gt=0, le=1, description="engine: share of a GPU's memory")
    block_size: PositiveInt = Field(32, description="engine: tokens of a KV block; a multiple of 32 on CPUs")
    cuda_graphs: bool = Field(True, description="engine: compile and capture on GPUs")
    env_timeout_s: PositiveFloat = Field(10.0, description="one environment call")
    env_memory_mib: int = Field(1024, ge=64, description="environment worker: memory beyond what it starts with")
    env_workers: PositiveInt = Field(2, description="most environment workers of one actor, started on need")
    ticket_timeout_s: PositiveFloat = Field(120.0, description="sampling one ticket")
    max_attempts: PositiveInt = Field(3, description="tries of a ticket before it counts as failed")
    start_timeout_s: PositiveFloat = Field(180.0, description="start of an engine or an environment worker")
    hang_timeout_s: PositiveFloat = Field(
        60.0,
        description="one engine step, or a sign of life of an actor or the replay queue; "
        "what takes longer is ended and started again",
    )
    max_restarts: int = Field(
        3, ge=0, description="starts of a rollout actor without a finished ticket between, after which it is given up"
    )


class QueueSettings(Settings):
    max_groups: PositiveInt = Field(64, description="groups it holds; actors with more wait")
    max_mib: PositiveInt = Field(64, description="MiB of messages it holds")
    max_policy_lag: int = Field(1, ge=0, description="updates a group may be behind when it is trained; 0: synchronous")
    timeout_s: PositiveFloat = Field(300.0, description="longest wait for room or for a batch")


class OptimSettings(Settings):
    lr: PositiveFloat = Field(5e-4, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.0, ge=0, description="decoupled")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradients' mean")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the gradients' squares")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    warmup_updates: int = Field(0, ge=0, description="updates of linear learning-rate growth")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="after the warm-up: as it is, or down to min_lr_share at run.updates"
    )
    min_lr_share: float = Field(0.0, ge=0, le=1, description="share of lr a falling schedule ends with")
    max_nonfinite: PositiveInt = Field(
        3, description="updates in a row without a finite loss and gradient after which the run stops"
    )

    @model_validator(mode="after")
    def _share_has_a_schedule(self) -> OptimSettings:
        if self.min_lr_share and self.schedule == "constant":
            raise ValueError(f"min_lr_share ({self.min_lr_share:g}) needs a falling schedule, schedule is constant")
        return self


class DeepspeedSettings(Settings):
    ranks: PositiveInt = Field(2, description="ZeRO-3 learner ranks, one Ray actor each")
    cpus_per_rank: float = Field(1.0, ge=0, description="logical CPUs a rank asks Ray for")
    gpus_per_rank: float = Field(0.0, ge=0, description="GPUs a rank asks Ray for")
    node_resources: NodeResources = Field({}, description="custom resources of Ray a rank asks for, name to amount")
    node_labels: NodeLabels = Field({}, description="labels of the nodes ranks may be on, as for actors")
    tokens_per_micro_batch: PositiveInt = Field(8192, description="tokens of one forward on one rank")
    gradient_checkpointing: bool = Field(
        False, description="compute activations anew in the backward pass instead of keeping them"
    )
    packing: bool = Field(True, description="rows end to end without padding; off: padded, for models that need it")
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="what lies in the hosts' memory: nothing, optimizer state, or parameters too"
    )
    bucket_mib: PositiveInt = Field(20, description="reduce, prefetch and gather buckets")
    timeout_s: PositiveFloat = Field(300.0, description="a collective, a start or an update of the ranks")
    max_restarts: int = Field(
        3,
        ge=0,
        description="starts of the ranks at the same checkpoint after which the run gives up",
    )


class SyncSettings(Settings):
    backend: Literal["auto", "nccl", "gloo"] = Field(
        "auto", description="auto: on GPUs nccl, or CUDA IPC with cluster.colocated; on CPUs gloo"
    )
    bucket_mib: PositiveInt = Field(16, description="packed broadcast buffer")
    checksum: bool = Field(False, description="compare a CRC-32 of what was sent with what every actor received")
    timeout_s: PositiveFloat = Field(120.0, description="one broadcast, all actors")


class EvalSettings(Settings):
    episodes: PositiveInt = Field(256, description="held-out seeds, the same before and after")
    samples: PositiveInt = Field(8, description="plain-prompt samples of each; also the largest k of pass@k")
    every: int = Field(0, ge=0, description="updates between evaluations while training; 0: before and after only")
    timeout_s: PositiveFloat = Field(600.0, description="an actor's answer, for some of the episodes")


class CheckpointSettings(Settings):
    every: int = Field(
        10,
        ge=0,
        description="updates between checkpoints, to which a run whose learner fails goes back; 0: only at the end",
    )
    keep: PositiveInt = Field(2, description="newest checkpoints that stay")
    best_by: str | None = Field(
        None, description="a metric of metrics.jsonl; the checkpoint with its best value stays too; empty: none"
    )
    best_is: Literal["highest", "lowest"] = Field("highest", description="which value of best_by is best")


class ObserveSettings(Settings):
    console: bool = Field(True, description="live table; off: one line an update")
    sample_every: int = Field(10, ge=0, description="updates between groups kept under samples/; 0: none")
    samples_kept: PositiveInt = Field(200, description="newest groups that stay under samples/")
    ray_metrics: bool = Field(True, description="every figure as a gauge on Ray's metrics endpoint, for Prometheus")
    tensorboard: bool = Field(True, description="every figure under tensorboard/ of the run's folder")
    wandb: str | None = Field(None, min_length=1, description="project on Weights & Biases; empty: not sent there")


class ClusterSettings(Settings):
    address: RayAddress | None = Field(
        None,
        description="HOST:PORT of Ray's head, no ray://; empty: RAY_ADDRESS, inside a Ray job that cluster, else a "
        "Ray of its own on this machine",
    )
    local_cpus: PositiveInt = Field(16, description="logical CPUs of a Ray of our own; roles share the real cores")
    dashboard: bool = Field(True, description="a Ray of our own brings its dashboard")
    dashboard_port: int = Field(
        8265, ge=1024, le=65535, description="of a Ray of our own; the next free one where it is taken"
    )
    object_store_mib: int = Field(300, ge=80, description="shared memory of a Ray of our own")
    placement_timeout_s: PositiveFloat = Field(
        30.0, description="wait for the cluster, and for room on it, before saying what is missing"
    )
    grows: bool = Field(
        False, description="an autoscaler adds nodes: room that lacks is asked for and waited for, not refused at once"
    )
    gpu_memory_gib: PositiveFloat | None = Field(
        None, description="memory of one GPU, for the estimate of what a run needs; empty: nothing is compared with it"
    )
    colocated: bool = Field(
        False,
        description="engines sleep while the learner updates; each learner rank shares its GPU with an engine, "
        "on CPUs all share the cores",
    )


class RunConfig(Settings):
    """The whole of a run. Cross-field checks name both fields."""

    run: RunSettings = RunSettings()
    model: ModelSettings = ModelSettings()
    env: EnvSettings = FrozenLakeSettings()
    sampler: SamplerSettings = ParallelSettings()
    rollout: RolloutSettings = RolloutSettings()
    queue: QueueSettings = QueueSettings()
    grpo: GrpoSettings = GrpoSettings()
    optim: OptimSettings = OptimSettings()
    deepspeed: DeepspeedSettings = DeepspeedSettings()
    sync: SyncSettings = SyncSettings()
    eval: EvalSettings = EvalSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    observe: ObserveSettings = ObserveSettings()
    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="after")
    def _fields_fit_together(self) -> RunConfig:
        if self.queue.max_groups < self.grpo.groups_per_update:
            raise ValueError(
                f"queue.max_groups ({self.queue.max_groups}) must be at least "
                f"grpo.groups_per_update ({self.grpo.groups_per_update}), or no batch ever fills"
            )
        if self.deepspeed.tokens_per_micro_batch < self.model.max_model_len:
            raise ValueError(
                f"deepspeed.tokens_per_micro_batch ({self.deepspeed.tokens_per_micro_batch}) must be at least "
                f"model.max_model_len ({self.model.max_model_len}), or the longest row fits in no micro-batch"
            )
        if self.grpo.overlong.buffer_tokens > self.rollout.tokens_per_turn:
            raise ValueError(
                f"grpo.overlong.buffer_tokens ({self.grpo.overlong.buffer_tokens}) must be at most "
                f"rollout.tokens_per_turn ({self.rollout.tokens_per_turn})"
            )
        if self.sampler.name == "verbalized" and self.env.max_turns > 1:
            raise ValueError(
                f"sampler.name (verbalized) asks for all answers in one turn, env.max_turns is {self.env.max_turns}: "
                "set it to 1, or take another sampler"
            )
        if self.checkpoint.best_by is not None and not self.checkpoint.every:
            raise ValueError(
                f"checkpoint.best_by ({self.checkpoint.best_by}) has nothing to choose from: checkpoint.every is 0"
            )
        if self.rollout.tokens_per_turn >= self.model.max_model_len:
            raise ValueError(
                f"rollout.tokens_per_turn ({self.rollout.tokens_per_turn}) must be below "
                f"model.max_model_len ({self.model.max_model_len})"
            )
        if self.rollout.gpus_per_actor == 0 and self.rollout.block_size % 32:
            raise ValueError(
                f"rollout.block_size ({self.rollout.block_size}) must be a multiple of 32 on CPUs "
                "(rollout.gpus_per_actor is 0)"
            )
        if self.sync.backend == "nccl" and self.rollout.gpus_per_actor == 0:
            raise ValueError(
                "sync.backend is nccl but rollout.gpus_per_actor is 0: use auto or gloo, or give the actors GPUs"
            )
        if self.sync.checksum and self.transfer_backend != "gloo":
            raise ValueError("sync.checksum works with sync.backend gloo only: vLLM's own transfers give no checksums")
        if isinstance(self.env, MathSettings) and 2 * self.env.grade_timeout_s >= self.rollout.env_timeout_s:
            raise ValueError(
                f"env.grade_timeout_s ({self.env.grade_timeout_s:g}) must be below half of rollout.env_timeout_s "
                f"({self.rollout.env_timeout_s:g}): an answer may wait that long for another one's grading"
            )
        if (self.rollout.gpus_per_actor > 0) != (self.deepspeed.gpus_per_rank > 0):
            raise ValueError(
                f"rollout.gpus_per_actor ({self.rollout.gpus_per_actor:g}) and deepspeed.gpus_per_rank "
                f"({self.deepspeed.gpus_per_rank:g}): weights cross between GPUs or between CPUs, give both or none"
            )
        for key, gpus in (
            ("rollout.gpus_per_actor", self.rollout.gpus_per_actor),
            ("deepspeed.gpus_per_rank", self.deepspeed.gpus_per_rank),
        ):
            if gpus > 1:
                raise ValueError(f"{key} ({gpus:g}) is for one process on one GPU: give 1, or a share of it")
        if self.rollout.tensor_parallel > 1 and 0 < self.rollout.gpus_per_actor < 1:
            raise ValueError(
                f"rollout.tensor_parallel ({self.rollout.tensor_parallel}) needs whole GPUs, "
                f"rollout.gpus_per_actor is {self.rollout.gpus_per_actor:g}"
            )
        if self.rollout.tensor_parallel > 1 and self.rollout.gpus_per_actor == 0:
            raise ValueError(
                f"rollout.tensor_parallel ({self.rollout.tensor_parallel}) needs GPUs, rollout.gpus_per_actor is 0"
            )
        return self

    @model_validator(mode="after")
    def _gpus_are_shared_as_said(self) -> RunConfig:
        check_sharing(self)
        return self

    @property
    def shares_gpus(self) -> bool:
        """Whether every engine is on the GPU of a learner rank."""
        return self.cluster.colocated and self.rollout.gpus_per_actor > 0

    @property
    def transfer_backend(self) -> Literal["nccl", "ipc", "gloo"]:
        """Which weight-transfer backend serves both ends: on GPUs vLLM's own NCCL or CUDA IPC, on CPUs our gloo."""
        if self.sync.backend != "auto":
            return self.sync.backend
        if self.shares_gpus:
            return "ipc"
        return "nccl" if self.rollout.gpus_per_actor > 0 else "gloo"
