"""Credit assignment inside one baseline group."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
