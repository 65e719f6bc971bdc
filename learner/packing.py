"""Rows end to end through a Hugging Face model: each row attends to itself, and nothing else is ever padded.

The model runs on one sequence of T tokens, in which a beginning that rows share lies once; `packed_attention` takes it
apart by rows. On a GPU in half precision it is the variable-length flash kernel of torch. Elsewhere pieces of like
length are padded to the longest of them for this one operation (`learner.layout`).
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


def packed_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside rows. query: (1, H, T, D); key, value: (1, H_kv, T, D); result: (1, T, H, D)."""
    if row_layout is None:
        raise PackingError("rows end to end need a row_layout: the model was called without one")
    # (T, H, D): tokens first, so that what is gathered lies together.
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    if _varlen_serves(query, value) and not dropout:
        return _varlen(q, k, v, scaling, row_layout).unsqueeze(0), None
    parts = [_chunk_attention(q, k, v, scaling, dropout, chunk) for chunk in row_layout.chunks]
    return torch.cat(parts).index_select(0, row_layout.gathered).unsqueeze(0), None


def _chunk_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, chunk: Chunk
) -> Tensor:
    """(pieces * length, H, D)."""

    def rows(states: Tensor, places: Tensor) -> Tensor:
        return states.index_select(0, places).unflatten(0, (chunk.pieces, -1)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        rows(query, chunk.queries),
        rows(key, chunk.keys),
        rows(value, chunk.keys),
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.transpose(1, 2).flatten(0, 1)


def _varlen_serves(query: Tensor, value: Tensor) -> bool:
    """Whether the flash kernel takes these heads: half precision, sizes that are equal, multiples of 8, at most 256."""
    size = query.shape[-1]
    half = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and half and size == value.shape[-1] and size % 8 == 0 and size <= 256


def _varlen(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, layout: Layout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out: Any = varlen_attn(
        query,
        key.index_select(0, layout.keys),
        value.index_select(0, layout.keys),
        layout.query_ends,
        layout.key_ends,
        *layout.longest,
        scale=scaling,
        window_size=(-1, 0),  # causal, the last query at the last key
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out
