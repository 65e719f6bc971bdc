"""Whether a model can be trained on rows that lie end to end: tried on two short rows before it is relied on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learner.layout import Piece, layout_of
from learner.packing import ATTENTION, PackingError

TOLERANCE = 1e-3  # nats; attention by another algorithm differs by 1e-5
ADVICE = "set deepspeed.packing=false"


def check_packable(model: Any, max_model_len: int) -> None:
    """Compare two rows end to end, with a beginning they share, to the same rows padded.

    model: in float32 and whole, with the attention ATTENTION. Raises PackingError for one whose layers see less than a
    row behind them, or more than attention alone passes on (recurrent layers, softcaps, sinks, position biases).
    """
    settings = model.config.get_text_config()
    window = getattr(settings, "sliding_window", None)
    slides = "sliding_attention" in (getattr(settings, "layer_types", None) or ["sliding_attention"])
    if window is not None and slides and window < max_model_len:
        raise PackingError(
            f"deepspeed.packing: the model attends to {window} tokens only, model.max_model_len is {max_model_len}: "
            f"{ADVICE}"
        )
    name = type(model).__name__
    rows = [torch.arange(n).mul(7).add(3 * n).remainder(settings.vocab_size) for n in (13, 11)]
    rows = [torch.cat([torch.arange(8).remainder(settings.vocab_size), row]) for row in rows]
    try:
        difference = (_end_to_end(model, rows) - _padded(model, rows)).abs().max().item()
    except Exception as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise PackingError(f"deepspeed.packing: {name} does not run on rows end to end ({last}): {ADVICE}") from error
    if not difference <= TOLERANCE:
        raise PackingError(
            f"deepspeed.packing: {name} gives other log-probs on rows end to end (by up to {difference:.2g}): {ADVICE}"
        )


@torch.no_grad()
def _end_to_end(model: Any, rows: list[Tensor]) -> Tensor:
    """Log-probs behind the shared beginning."""
    shared, first, second = rows[0][:8], rows[0][8:], rows[1][8:]
    pieces = [Piece(0, 8), Piece(8, len(first), 0, 8), Piece(8 + len(first), len(second), 0, 8)]
    layout = layout_of(pieces, torch.device("cpu"))
    output = model(
        input_ids=torch.cat([shared, first, second]).unsqueeze(0),
        position_ids=layout.position_ids,
        row_layout=layout,
        use_cache=False,
    )
    return output.logits[0, 8:].log_softmax(-1)


@torch.no_grad()
def _padded(model: Any, rows: list[Tensor]) -> Tensor:
    model.set_attn_implementation("eager")
    try:
        mask = torch.arange(len(rows[0])) < torch.tensor([[len(row)] for row in rows])
        token_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        logits = model(input_ids=token_ids, attention_mask=mask.long(), use_cache=False).logits
        return torch.cat([logits[i, 8 : len(row)] for i, row in enumerate(rows)]).log_softmax(-1)
    finally:
        model.set_attn_implementation(ATTENTION)
