"""The small policy of a laptop: tokenizer, chat template and Qwen2 model, trained on scripted conversations.

The conversations are passed in, so this module knows no environment.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from configs.schema import WarmupSettings
from envs.trajectory import Conversation

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Both let a narrow model find copying within a few hundred steps; with the usual 0.02 and 10000 it needs thousands.
INIT_STD, ROPE_THETA = 0.1, 500.0
THREADS = 2
MAX_GRAD_NORM = 1.0
LR_GROWTH_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class WarmupReport:
    """`tokens`: trained and context tokens seen; `loss`: nats a trained token, mean of the last 5 % of the steps."""

    seconds: float
    tokens: int
    loss: float
    parameters: int


@dataclass(frozen=True, slots=True)
class Example:
    """token_ids: (n,) int64. trained: (n,) bool, whether the model learns to say that token."""

    token_ids: np.ndarray
    trained: np.ndarray


def make_policy(
    conversations: Sequence[Conversation],
    settings: WarmupSettings,
    tags: Sequence[str],
    max_model_len: int,
    folder: Path,
) -> WarmupReport:
    """Train a policy on the conversations' trained turns; leave it in `folder` in Hugging Face format, all or nothing.

    `tags`: what is to be one token each, such as `<answer>`.
    Raises ValueError if a conversation is longer than `max_model_len` tokens. Repeatable: the same arguments on the
    same machine give the same weights.
    """
    started = time.monotonic()
    tokenizer = train_tokenizer(conversations, settings.vocabulary, tags, max_model_len)
    examples = encode(conversations, tokenizer)
    longest = max(len(example.token_ids) for example in examples)
    if longest > max_model_len:
        raise ValueError(f"the longest demonstration has {longest} tokens, model.max_model_len is {max_model_len}")
    threads = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, os.cpu_count() or 1))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = _new_model(tokenizer, settings, max_model_len)
            loss = _train(model, examples, settings)
    finally:
        torch.set_num_threads(threads)
    _save(model, tokenizer, folder)
    return WarmupReport(
        seconds=time.monotonic() - started,
        tokens=settings.epochs * sum(len(example.token_ids) for example in examples),
        loss=loss,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def train_tokenizer(
    conversations: Sequence[Conversation], vocabulary: int, tags: Sequence[str], max_model_len: int
) -> Qwen2Tokenizer:
    """Byte-level BPE of at most `vocabulary` entries, with the chat template; any text can be encoded.

    Cut into words, single digits and signs as Qwen2's tokenizer does it: transformers loads that class for every
    Qwen2 model, whatever the tokenizer's own files say.
    """
    bpe = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(tags),
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts_without(tags, conversations), trainer)
    trained = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        unk_token=None,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_model_len,
        clean_up_tokenization_spaces=False,
    )
    # Ordinary added tokens: decoding keeps them, as graders need them.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return tokenizer


def _texts_without(tags: Sequence[str], conversations: Sequence[Conversation]) -> Iterator[str]:
    for message in (message for conversation in conversations for message in conversation):
        text = message.content
        for tag in tags:
            text = text.replace(tag, "\n")
        yield f"{message.role}\n{text}"


def encode(conversations: Sequence[Conversation], tokenizer: Qwen2Tokenizer) -> list[Example]:
    """Each conversation as the chat template writes it; trained are a trained turn's words and its end mark."""
    pieces: list[str] = []
    learned: list[bool] = []
    counts: list[int] = []
    for conversation in conversations:
        for message in conversation:
            pieces += [f"{START}{message.role}\n", f"{message.content}{END}", "\n"]
            learned += [False, message.trained, False]
        counts.append(3 * len(conversation))
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
    lengths = np.array([len(piece.ids) for piece in encoded])
    ids = np.concatenate([piece.ids for piece in encoded]).astype(np.int64)
    mask = np.repeat(np.array(learned), lengths)
    ends = np.cumsum(lengths)[np.cumsum(counts) - 1][:-1]
    return [Example(*pair) for pair in zip(np.split(ids, ends), np.split(mask, ends), strict=True)]


def _new_model(tokenizer: Qwen2Tokenizer, settings: WarmupSettings, max_model_len: int) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=3 * settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=max_model_len,
        initializer_range=INIT_STD,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    config._attn_implementation = "sdpa"
    return Qwen2ForCausalLM(config)


def _train(model: Qwen2ForCausalLM, examples: Sequence[Example], settings: WarmupSettings) -> float:
    rng = np.random.default_rng(settings.seed)
    batches = [batch for _ in range(settings.epochs) for batch in _batches(examples, settings.tokens_per_batch, rng)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_share(step, len(batches)))
    losses = []
    model.train()
    for batch in batches:
        token_ids, targets = _pad(batch, model.config.pad_token_id)
        hidden = model.model(input_ids=token_ids).last_hidden_state
        wanted = targets >= 0
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), targets[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return float(np.mean(losses[-max(1, len(losses) // 20) :]))


def _lr_share(step: int, steps: int) -> float:
    """Linear growth, then a cosine to zero; in [0, 1]."""
    growth = max(1, round(LR_GROWTH_SHARE * steps))
    if step < growth:
        return (step + 1) / growth
    return 0.5 * (1 + math.cos(math.pi * (step - growth) / max(1, steps - growth)))


def _batches(examples: Sequence[Example], tokens: int, rng: np.random.Generator) -> list[list[Example]]:
    """All examples once, in batches of similar lengths and at most `tokens` padded tokens (one example at least)."""
    order = sorted(rng.permutation(len(examples)), key=lambda index: len(examples[index].token_ids))
    batches: list[list[Example]] = [[]]
    for example in (examples[index] for index in order):
        if batches[-1] and (len(batches[-1]) + 1) * len(example.token_ids) > tokens:
            batches.append([])
        batches[-1].append(example)
    return [batches[index] for index in rng.permutation(len(batches))]


def _pad(batch: Sequence[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T), padded on the right, and targets (B, T): the next token where it is learned, else -1.

    Causal attention keeps the padding on the right out of everything before it, so that no mask is needed.
    """
    longest = max(len(example.token_ids) for example in batch)
    token_ids = np.full((len(batch), longest), pad)
    targets = np.full((len(batch), longest), -1)
    for row, example in enumerate(batch):
        n = len(example.token_ids)
        token_ids[row, :n] = example.token_ids
        targets[row, : n - 1] = np.where(example.trained[1:], example.token_ids[1:], -1)
    return torch.from_numpy(token_ids), torch.from_numpy(targets)


def _save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        # mkdtemp's folder is private, a policy is not.
        unfinished.chmod(0o755)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
