"""Credit assignment inside one baseline group."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from configs.objectives import OverlongSettings


def group_advantages(
    rewards: npt.NDArray[np.float64], normalize_std: bool, epsilon: float = 1e-6
) -> npt.NDArray[np.float64]:
    """A_i = r_i - mean(r), divided by std(r) + epsilon if asked. rewards and result: (members,).

    GRPO (arXiv 2402.03300, section 4.1) normalises by the standard deviation; Dr. GRPO (arXiv 2503.20783) does not.
    A group of equal rewards, or of one member, has no advantage.
    """
    if rewards.max() == rewards.min():
        return np.zeros_like(rewards)  # exactly, whatever the mean rounds to
    centred = rewards - rewards.mean()
    return centred / (rewards.std() + epsilon) if normalize_std else centred


def overlong_penalty(length: int, limit: int, settings: OverlongSettings) -> float:
    """What an answer of `length` tokens loses near its `limit`: nothing before the buffer, all of `penalty` at the end.

    Soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13), linear in between.
    """
    if not settings.buffer_tokens:
        return 0.0
    into_buffer = length - (limit - settings.buffer_tokens)
    return settings.penalty * min(max(into_buffer / settings.buffer_tokens, 0.0), 1.0)
