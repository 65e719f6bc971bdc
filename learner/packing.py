"""Rows end to end through a Hugging Face model: each row attends to itself, and nothing else is ever padded.

The model runs on one sequence of T tokens; `packed_attention` takes it apart by rows. On a GPU in half precision it is
the variable-length flash kernel of torch. Elsewhere rows of like length, which lie side by side, are padded to the
longest of them for this one operation (`learner.layout`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.layout import Chunk, Layout

ATTENTION = "rows_end_to_end"


class PackingError(ValueError):
    """The model cannot be trained on rows end to end; names the setting to change."""


def register() -> None:
    """Make the attention known to transformers under ATTENTION; a second call does nothing new."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)


def check_packable(config: Any, max_model_len: int) -> None:
    """Raises PackingError for a model whose layers see less than a whole row behind them."""
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if window is not None and slides and window < max_model_len:
        raise PackingError(
            f"deepspeed.packing: the model attends to {window} tokens only, model.max_model_len is {max_model_len}: "
            "set deepspeed.packing=false"
        )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside rows. query: (1, H, T, D); key, value: (1, H_kv, T, D); result: (1, T, H, D)."""
    if row_layout is None:
        raise PackingError("rows end to end need a row_layout: the model was called without one")
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        return _varlen(query, key, value, scaling, row_layout), None
    parts = [_chunk_attention(query, key, value, scaling, dropout, chunk) for chunk in row_layout.chunks]
    return torch.cat(parts).unsqueeze(0), None


def _chunk_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, chunk: Chunk
) -> Tensor:
    """(tokens of the chunk, H, D)."""

    def rows(states: Tensor) -> Tensor:
        own = states[0, :, chunk.first : chunk.last]
        own = own if chunk.spread is None else own.index_select(1, chunk.spread)
        return own.unflatten(1, (chunk.rows, chunk.length)).transpose(0, 1)

    attended = F.scaled_dot_product_attention(
        rows(query), rows(key), rows(value), is_causal=True, scale=scaling, dropout_p=dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    tokens = attended.transpose(1, 2).flatten(0, 1)
    return tokens if chunk.gathered is None else tokens.index_select(0, chunk.gathered)


def _varlen(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, layout: Layout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    ends = layout.boundaries
    out = varlen_attn(
        q, k, v, ends, ends, layout.longest, layout.longest,
        scale=scaling, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return out.unsqueeze(0)  # type: ignore[union-attr]
