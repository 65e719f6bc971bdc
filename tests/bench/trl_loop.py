"""TRL's GRPOTrainer on the same policy, prompts and rewards; prints seconds of each step as JSON.

python -m tests.bench.trl_loop CONFIG.json    (one process a rank, with torch's RANK, WORLD_SIZE and MASTER_* set)
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from configs.schema import RunConfig
from envs.registry import make_env
from orchestration.tickets import training_ticket


@dataclass(frozen=True)
class Job:
    """policy: folder. steps: optimizer steps. threads: of torch, in each process."""

    config: dict[str, Any]
    policy: str
    steps: int
    threads: int


def prompts(config: RunConfig, count: int) -> list[dict[str, Any]]:
    """The first messages of the run's first tickets, and the seeds of their episodes."""
    env = make_env(config.env)
    rows = []
    for index in range(count):
        seed = training_ticket(config.run.seed, index, config.env.name).seed
        first = env.reset(seed=seed)[0]
        turns = [{"role": "system", "content": env.rules}, {"role": "user", "content": first}]
        rows.append({"prompt": turns, "episode": seed})
    return rows


def run(job: Job) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(job.threads)
    config = RunConfig.model_validate(job.config)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    group: Any = getattr(config.sampler, "group_size")  # noqa: B009
    env = make_env(config.env)

    def reward(completions: list[Any], episode: list[int], **_: Any) -> list[float]:
        rewards = []
        for completion, seed in zip(completions, episode, strict=True):
            env.reset(seed=seed)
            rewards.append(float(env.step(completion[0]["content"])[1]))
        return rewards

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=config.grpo.groups_per_update * group // processes,
            num_generations=group,
            max_completion_length=config.rollout.tokens_per_turn,
            temperature=config.rollout.temperature,
            learning_rate=config.optim.lr,
            max_grad_norm=config.optim.max_grad_norm,
            max_steps=job.steps,
            beta=0.0,
            gradient_checkpointing=False,
            logging_steps=10**6,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            lr_scheduler_type="constant",
        )
        data = Dataset.from_list(prompts(config, config.grpo.groups_per_update * (job.steps + 1)))
        trainer = GRPOTrainer(job.policy, reward_funcs=reward, args=settings, train_dataset=data, callbacks=[Clock()])
        trainer.train()
    if int(os.environ.get("RANK", "0")) == 0:
        seconds = [later - earlier for earlier, later in pairwise(ends)]
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    run(Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
