"""The warm-up: what it saves can be loaded, says what it was taught, and is the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from configs.environments import FrozenLakeSettings
from configs.schema import WarmupSettings
from envs.demonstrations import demonstrate
from envs.protocol import tags
from envs.registry import make_env, make_script
from envs.trajectory import Conversation, Message
from learner.warmup import END, WarmupReport, encode, make_policy, train_tokenizer

SMALL = WarmupSettings(layers=1, hidden=32, heads=1, demonstrations=60, tokens_per_batch=1024)
LENGTH = 512
TAGS = tags(FrozenLakeSettings())


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    env, script = make_env(FrozenLakeSettings()), make_script(FrozenLakeSettings())
    return [demonstrate(env, script, seed, 0.5) for seed in range(SMALL.demonstrations)]


@pytest.fixture(scope="module")
def tokenizer(conversations: list[Conversation]) -> Qwen2Tokenizer:
    return train_tokenizer(conversations, SMALL.vocabulary, TAGS, LENGTH)


@pytest.fixture(scope="module")
def made(conversations: list[Conversation], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WarmupReport]:
    folder = tmp_path_factory.mktemp("warm") / "policy"
    return folder, make_policy(conversations, SMALL, TAGS, LENGTH, folder)


def chat(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in conversation]


def test_the_policy_reloads_with_its_tokenizer_and_ends_its_turns(
    made: tuple[Path, WarmupReport], conversations: list[Conversation]
) -> None:
    folder, report = made
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode([tokenizer.eos_token_id]) == END
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    prompt = tokenizer.apply_chat_template(chat(conversations[0])[:2], add_generation_prompt=True, return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=4)
    assert generated.shape[1] > prompt["input_ids"].shape[1]


def test_the_reloaded_tokenizer_cuts_texts_the_same_way(
    made: tuple[Path, WarmupReport], tokenizer: Qwen2Tokenizer, conversations: list[Conversation]
) -> None:
    """AutoTokenizer picks the class by the model's type: a pre-tokenizer of our own would be dropped in silence."""
    reloaded = AutoTokenizer.from_pretrained(made[0])
    for conversation in conversations:
        for message in conversation:
            assert reloaded.encode(message.content) == tokenizer.encode(message.content)


def test_the_chat_template_writes_what_was_trained_on(
    tokenizer: Qwen2Tokenizer, conversations: list[Conversation]
) -> None:
    for conversation, example in zip(conversations, encode(conversations, tokenizer), strict=True):
        whole = tokenizer.apply_chat_template(chat(conversation), return_dict=False)
        assert whole == example.token_ids.tolist()
        asked = tokenizer.apply_chat_template(chat(conversation)[:2], add_generation_prompt=True, return_dict=False)
        assert asked == whole[: int(np.argmax(example.trained))]


def test_exactly_the_trained_turns_and_their_ends_are_learned(tokenizer: Qwen2Tokenizer) -> None:
    conversation = (
        Message("user", "say <think>"),
        Message("assistant", "not this"),
        Message("user", "again"),
        Message("assistant", "<think>this</think> é", trained=True),
    )
    (example,) = encode([conversation], tokenizer)
    assert tokenizer.decode(example.token_ids[example.trained]) == f"<think>this</think> é{END}"


def test_places_and_cells_are_single_tokens_and_tags_survive_decoding(tokenizer: Qwen2Tokenizer) -> None:
    text = "F P H G\n<think>r1c2: Up ice.</think><answer>Up</answer>"
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    assert pieces[:8] == ["F", " P", " H", " G", "\n", "<think>", "r", "1"]
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert len(tokenizer) <= SMALL.vocabulary


def test_the_same_arguments_give_the_same_weights(
    made: tuple[Path, WarmupReport], conversations: list[Conversation], tmp_path: Path
) -> None:
    state = torch.random.get_rng_state()
    make_policy(conversations, SMALL, TAGS, LENGTH, tmp_path / "again")
    assert torch.equal(state, torch.random.get_rng_state())
    first, again = (load_file(folder / "model.safetensors") for folder in (made[0], tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = SMALL.model_copy(update={"seed": 1})
    make_policy(conversations, other, TAGS, LENGTH, tmp_path / "other")
    different = load_file(tmp_path / "other" / "model.safetensors")
    assert not torch.equal(first["lm_head.weight"], different["lm_head.weight"])


def test_training_lowers_the_loss(made: tuple[Path, WarmupReport], conversations: list[Conversation]) -> None:
    folder, report = made
    assert report.loss < 0.7 * np.log(len(AutoTokenizer.from_pretrained(folder)))
    assert report.tokens == sum(len(e.token_ids) for e in encode(conversations, AutoTokenizer.from_pretrained(folder)))


def test_a_conversation_that_does_not_fit_is_named_and_nothing_is_left(
    conversations: list[Conversation], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"the longest demonstration has \d+ tokens, model.max_model_len is 64"):
        make_policy(conversations, SMALL, TAGS, 64, tmp_path / "policy")
    assert not list(tmp_path.iterdir())
