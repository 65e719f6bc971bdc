"""Our loss and its gradient against TRL's: its GRPOTrainer scores the same conversations and computes its own loss.

TRL gets tokens, masks, the sampler's log-probs and rewards through its `rollout_func`, and from there on everything is
its own: padding, advantages, log-probs before the update and of the reference, importance weights. There is one process
and one micro-batch, for which its normalisers are those of the whole batch: "grpo" averages over the sequences of a
micro-batch, "bnpo" over its tokens, "dr_grpo" over its sequences times a constant; "dapo" and "cispo" divide by the
tokens of the batch.

Set aside, as the two differ there: a standard deviation of rewards (TRL's is the unbiased one, plus 1e-4) and TRL's
`use_bias_correction_kl`, which weighs k3 with the ratio. CISPO of TRL has no lower bound and names 1 + clip_high.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.schema import RunConfig
from envs.trajectory import Credit, Group, Role, Row, Segment, Stream, Ticket, Trajectory, Verdict
from learner.batches import MicroBatch
from learner.logprobs import token_logprobs
from learner.objective import batch_loss
from learner.rows import training_rows
from tests.builders import END, answer, byte_tokenizer, collated, observation, prompt

pytestmark = pytest.mark.slow

PROMPTS, GENERATIONS, TEMPERATURE, LONGEST = 3, 4, 0.7, 12
# What holds for every case. TRL computes log-probs before the update where a batch is used more than once.
TRL: dict[str, Any] = {
    "num_iterations": 2, "scale_rewards": "none", "use_bias_correction_kl": False, "temperature": TEMPERATURE,
    "max_completion_length": LONGEST, "epsilon": 0.2, "vllm_importance_sampling_clip_max": None,
    "vllm_importance_sampling_mode": "token_mask",
}  # fmt: skip
OURS: dict[str, Any] = {
    "normalize_std": False, "constant_length": LONGEST, "epochs": 2, "importance": {"cap": None}, "clip_low": 0.2
}  # fmt: skip
SEQUENCE = {"loss_type": "grpo"}, {"normalizer": "sequence"}
TOKEN = {"loss_type": "dapo"}, {"normalizer": "token"}


def weights(level: str, mode: str, cap: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides' settings of a correction of the engine's log-probs."""
    trl = {
        "vllm_importance_sampling_mode": f"{level}_{mode}",
        "vllm_importance_sampling_clip_max": cap,
        "use_vllm": True,
    }
    return trl, {"importance": {"level": level, "mode": mode, "cap": cap}}


CASES: dict[str, Sequence[tuple[dict[str, Any], dict[str, Any]]]] = {
    "GRPO": [SEQUENCE],
    "GRPO, ratio against the engine": [SEQUENCE, ({"against": "engine"}, {"old_policy": "behaviour"})],
    "DAPO": [TOKEN, ({"epsilon_high": 0.5}, {"clip_high": 0.5})],
    "BNPO": [({"loss_type": "bnpo"}, {"normalizer": "token"})],
    "Dr. GRPO": [({"loss_type": "dr_grpo"}, {"normalizer": "constant"})],
    "cut answers": [TOKEN, ({"mask_truncated_completions": True}, {"overlong": {"mask_truncated": True}})],
    "dual clip": [SEQUENCE, ({"delta": 1.4}, {"dual_clip": 1.4})],
    "GSPO": [
        SEQUENCE,
        (
            {"importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.05},
            {"objective": "gspo", "clip_low": 0.03, "clip_high": 0.05},
        ),
    ],
    "CISPO": [
        ({"loss_type": "cispo", "epsilon_high": 1.3}, {"clip_low": 1.0, "clip_high": 0.3}),
        ({}, {"objective": "cispo"}),
    ],
    "KL to a reference": [SEQUENCE, ({"beta": 0.5}, {"kl": {"coefficient": 0.5}})],
    "entropy bonus": [TOKEN, ({"entropy_coef": 0.1}, {"entropy": {"name": "bonus", "coefficient": 0.1}})],
    "truncated weights of tokens": [TOKEN, weights("token", "truncate", 1.2)],
    "masked weights of tokens": [TOKEN, weights("token", "mask", 1.2)],
    "truncated weights of sequences": [SEQUENCE, weights("sequence", "truncate", 1.2)],
    "masked weights of sequences, KL": [
        SEQUENCE, weights("sequence", "mask", 1.2), ({"beta": 0.5}, {"kl": {"coefficient": 0.5}})
    ],
    "off-policy sequences left out": [
        SEQUENCE, ({"off_policy_mask_threshold": 0.1}, {"importance": {"cap": None, "max_divergence": 0.1}})
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 whose distributions are peaked enough for ratios to differ."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("policy")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=264, **shape, **heads))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _process_left_as_it_was() -> Iterator[None]:
    """Accelerate keeps its settings in the environment and in the process."""
    environment = dict(os.environ)
    os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", HF_HUB_OFFLINE="1")
    with torch.random.fork_rng():
        yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.clear()
    os.environ.update(environment)


def load(policy: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    return model


def conversations(logprob: Tensor) -> list[Group]:
    """Groups of one answer, or of an answer, what was replied, and another answer. Every fourth was cut at the end.

    logprob: what the engine says it sampled each token with, more of them than needed.
    """
    rng = np.random.default_rng(1)
    end = byte_tokenizer().eos_token_id
    given = iter(logprob.tolist())
    groups = []
    for index in range(PROMPTS):
        asked = prompt(*rng.integers(5, 250, size=2 + index).tolist())
        trajectories, rows = [], []
        for number in range(GENERATIONS):
            cut = number == index
            said = [*rng.integers(5, 250, size=int(rng.integers(1, 6))).tolist(), *([] if cut else [end])]
            turns = [asked, _sampled(said, given, ended=not cut)]
            if number % 2:
                reply = observation(*rng.integers(5, 250, size=2).tolist())
                turns[1:1] = [_sampled(rng.integers(5, 250, size=2).tolist(), given), reply]
            reward = float(rng.integers(0, 4))
            trajectories.append(Trajectory(tuple(turns), Verdict.WRONG, reward))
            rows.append(Row(number, 1, (Credit(1, len(turns), Stream.SOLUTION, "all", reward),)))
        groups.append(Group(Ticket(index, "scripted", index), "parallel", tuple(trajectories), tuple(rows)))
    return groups


def _sampled(token_ids: Sequence[int], logprobs: Iterator[float], ended: bool = True) -> Segment:
    segment = answer(*token_ids)
    said = np.array([next(logprobs) for _ in token_ids], np.float32)
    return Segment(Role.ANSWER, segment.token_ids, said, segment.policy_versions, ended)


def engine_logprobs(model: nn.Module) -> list[Group]:
    """The conversations, with log-probs near the model's, as a slightly different engine would give them."""
    groups = conversations(torch.zeros(1000))
    settings = RunConfig.model_validate({"grpo": OURS})
    batch = collated(training_rows(groups, settings))
    with torch.no_grad():
        logprobs, _ = forward(model, batch)
    noise = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(2))
    return conversations(logprobs + 0.15 * noise)


def forward(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """log pi and entropy of the trained tokens, each row through the model by itself."""
    rows = batch.token_ids.split(list(batch.lengths))
    logits = torch.cat([model(input_ids=row.unsqueeze(0)).logits[0] for row in rows])
    return token_logprobs(logits[batch.targets - 1], batch.token_ids[batch.targets], TEMPERATURE, entropy_gradient=True)


def moved(model: nn.Module, seed: int) -> nn.Module:
    """The model after an update: every weight a little off, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def trainer_of(policy: Path, groups: Sequence[Group], settings: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    answers = [
        (trajectory.segments[0], trajectory.segments[1:]) for group in groups for trajectory in group.trajectories
    ]
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = END

    def rollout(prompts: Any, trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": [asked.token_ids.tolist() for asked, _ in answers],
            "completion_ids": [[int(t) for s in rest for t in s.token_ids] for _, rest in answers],
            "logprobs": [
                [float(x) for s in rest for x in (s.behaviour_logprobs if s.sampled else np.zeros(len(s.token_ids)))]
                for _, rest in answers
            ],
            "env_mask": [[int(s.sampled) for s in rest for _ in s.token_ids] for _, rest in answers],
        }

    def earned(completions: Any, **_: Any) -> list[float]:
        return [row.credits[0].reward for group in groups for row in group.rows]

    arguments = GRPOConfig(
        output_dir=str(policy / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=PROMPTS * GENERATIONS,
        num_generations=GENERATIONS,
        **settings,
    )
    return GRPOTrainer(
        model=str(policy),
        reward_funcs=earned,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["what"] * 4}),
        processing_class=tokenizer,
        rollout_func=rollout,
    )


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trl(policy: Path, case: str) -> None:
    """And with the last of the case's settings left out on our side, they are not."""
    parts = CASES[case]
    trl_settings = merged(TRL, [theirs for theirs, _ in parts])
    against, use_vllm = trl_settings.pop("against", "learner"), trl_settings.pop("use_vllm", False)

    # A first update lies between the reference and the log-probs before the update, a second one after them.
    before = moved(load(policy), seed=3)
    groups = engine_logprobs(before)
    trainer = trainer_of(policy, groups, trl_settings)
    model = moved(trainer.model.train(), seed=3)
    # As while training, with one micro-batch a step; the engine's weights count as loaded.
    trainer.current_gradient_accumulation_steps, trainer.use_vllm, trainer._last_loaded_step = 1, use_vllm, 0
    inputs = trainer._generate_and_score_completions([{"prompt": "what"}] * (PROMPTS * GENERATIONS))
    if against == "engine":
        inputs["old_per_token_logps"] = inputs["sampling_per_token_logps"]
    moved(model, seed=4)
    loss = trainer._compute_loss(model, inputs)
    expected = gradients(model, loss)

    def ours(settings: Sequence[dict[str, Any]]) -> tuple[float, float]:
        """Our loss, and how far the furthest gradient of a parameter is from TRL's, relative to its norm."""
        own, found = our_loss_and_gradient(groups, merged(OURS, settings), load(policy), before, model)
        assert set(found) == set(expected)
        return own, max(float((found[name] - g).norm() / g.norm()) for name, g in expected.items())

    own, distance = ours([own for _, own in parts])
    assert own == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    assert distance <= 1e-5
    if len(parts) > 1:
        assert ours([own for _, own in parts[:-1]])[1] > 0.01


def merged(common: dict[str, Any], parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return dict(item for part in (common, *parts) for item in part.items())


def our_loss_and_gradient(
    groups: Sequence[Group], grpo: dict[str, Any], reference: nn.Module, before: nn.Module, model: nn.Module
) -> tuple[float, dict[str, Tensor]]:
    """From rows to the loss as the learner goes, in two micro-batches."""
    config = RunConfig.model_validate({"grpo": grpo, "rollout": {"temperature": TEMPERATURE}})
    rows = [row for row in training_rows(groups, config) if len(row.targets)]
    losses = []
    for part in (rows[:5], rows[5:]):
        batch = collated(part)
        with torch.no_grad():
            old = forward(before, batch)[0]
            frozen = forward(reference, batch)[0] if config.grpo.kl.coefficient else None
        losses.append(batch_loss(batch, *forward(model, batch), old, frozen, None, config.grpo).total)
    loss = torch.stack(losses).sum()
    return loss.item(), gradients(model, loss)
