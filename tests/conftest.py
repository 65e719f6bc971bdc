"""Fixtures of the scripted policy and environment; what takes long to import is imported where it is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.builders import Scene, byte_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from actors.chat import Chat

# An example's time says more about what else the machine does than about the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def chat(tokenizer: PreTrainedTokenizerFast) -> Chat:
    from actors.chat import Chat

    return Chat(tokenizer)


@pytest.fixture
def scene(chat: Chat) -> Iterator[Scene]:
    scene = Scene(chat)
    yield scene
    scene.released.set()
