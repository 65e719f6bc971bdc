"""What others wrote, as it may be shown and kept: on one line, and without secrets.

Secrets are the values of environment variables whose names say so (WANDB_API_KEY, HF_TOKEN), user and password in an
address, and what begins as the tokens of well-known services do.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

MOST_SHOWN = 1000
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PAT|CREDENTIALS?|COOKIE)(?:_|S?$)", re.IGNORECASE
)
# Shorter values, and short plain words such as `disabled`, stand in texts that tell nothing of them.
_SHORTEST, _SHORTEST_WORD = 8, 16
_TOKEN = re.compile(
    r"\b(?:hf_|gh[pousr]_|github_pat_|sk-|wandb_v\d_)[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=\bBearer )[A-Za-z0-9._~+/=-]{8,}",
    re.ASCII,
)
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@?#]{1,500}(?=@)")
_GIVEN = re.compile(r"(?i)(?<![a-z])((?:[a-z]+_)?(?:api_?key|token|secret|password|passwd)=)[^\s&]+")


def one_line(text: object, most: int = MOST_SHOWN) -> str:
    """A text on one line of printable characters, cut where it is longer than `most`."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[: most + 1])
    return line if len(line) <= most else line[: most - 3] + "..."


def redacted(text: str) -> str:
    """The text with `[NAME]` for the value of an environment variable, `[...]` for any other secret in it."""
    if not text:
        return text
    for name, value in _secrets():
        text = text.replace(value, f"[{name}]")
    return _GIVEN.sub(r"\1[...]", _TOKEN.sub("[...]", _IN_ADDRESS.sub("[...]", text)))


def safe(text: object) -> str:
    """`one_line` and `redacted`: for causes of failures, which come from anywhere and are kept."""
    # A secret that the cut would halve is found first; what lies far behind it is not searched.
    return one_line(redacted(str(text)[: 16 * MOST_SHOWN]))


def secret_in(text: str) -> str | None:
    """What kind of secret a text holds, without repeating it; None if none is found."""
    for name, value in _secrets():
        if value in text:
            return f"the value of {name}"
    if _IN_ADDRESS.search(text):
        return "user or password of an address"
    return "an access token" if _TOKEN.search(text) else None


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def _secrets() -> list[tuple[str, str]]:
    """Names and values, the longest value first."""
    found = [(name, value) for name, value in os.environ.items() if is_secret_name(name) and _is_telling(value)]
    return sorted(found, key=lambda pair: -len(pair[1]))


def _is_telling(value: str) -> bool:
    if len(value) < (_SHORTEST_WORD if value.isalpha() else _SHORTEST):
        return False
    try:
        return not Path(value).exists()  # where a secret lies is none
    except (OSError, ValueError):
        return True
