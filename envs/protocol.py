"""The text protocol all environments share: how an answer is read, and how bad ones are told back.

Nothing here raises on any text, and all of it takes time linear in the text's length.
"""

from __future__ import annotations

import string

from configs.environments import TurnSettings

MAX_TEXT = 16384
SEPARATOR = "||"
_MOST_SHOWN = 40
_PLAIN = frozenset(string.printable) - frozenset("\t\n\r\x0b\x0c")


class Unreadable(ValueError):
    """No action of this environment, whatever its state. The message is for the policy to read."""


class Illegal(ValueError):
    """An action, but none that can be made now. The message is for the policy to read."""


def read_answer(text: str, tag: str) -> str | None:
    """What stands in the last closed `<tag>...</tag>`, stripped; None if there is none. Long texts lose their start."""
    text = text[-MAX_TEXT:]
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, end) if end >= 0 else -1
    return text[start + len(tag) + 2 : end].strip() if start >= 0 else None


def split_actions(answer: str) -> list[str]:
    """The actions of `A || B`, stripped; an empty one is kept."""
    return [part.strip() for part in answer.split(SEPARATOR)]


def form(settings: TurnSettings, example: str) -> str:
    """The form of an answer, as the rules show it."""
    tag, think = settings.answer_tag, settings.think_tag
    thoughts = f"<{think}>...</{think}>" if think else ""
    return f"{thoughts}<{tag}>{example}</{tag}>"


def spoken(settings: TurnSettings, thought: str, answer: str) -> str:
    """A scripted answer in that form; the thought is left out where no tag is set for it."""
    tag, think = settings.answer_tag, settings.think_tag
    thoughts = f"<{think}>{thought}</{think}>" if think else ""
    return f"{thoughts}<{tag}>{answer}</{tag}>"


def tags(settings: TurnSettings) -> tuple[str, ...]:
    """All tags of the protocol as they are written."""
    names = [name for name in (settings.think_tag, settings.answer_tag) if name]
    return tuple(tag for name in names for tag in (f"<{name}>", f"</{name}>"))


def shown(text: str) -> str:
    """A policy's word as it may be repeated to it: short, on one line, plain characters."""
    cut = text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
    return "".join(c if c in _PLAIN else "?" for c in cut)
