"""Why sampling failed. Causes are kept in samples and ledger: they are short, on one line, and hold no secret."""

from __future__ import annotations

from configs.shown import safe


class EnvironmentFailure(RuntimeError):
    """The environment raised or did not answer in time: the episode failed, which is no verdict on the policy."""

    def __init__(self, cause: str) -> None:
        super().__init__(safe(cause))


def cause_of(error: BaseException) -> str:
    """The kind of an error and its last line: errors that crossed processes carry a traceback before it."""
    last = (str(error).strip().splitlines() or [""])[-1].strip()
    return safe(f"{type(error).__name__}: {last}")
