"""A broadcast that would wait for ever can be broken off, and nobody uses a communicator while it is freed."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from configs import breakable
from configs.breakable import Breakable, GroupBroke

pytestmark = pytest.mark.timeout(20)


class Communicator:
    """held: a broadcast waits on the host until it is set. did: what was asked, in order."""

    def __init__(self) -> None:
        self.available = True
        self.held, self.inside = threading.Event(), threading.Event()
        self.did: list[Any] = []
        self.error: Exception | None = None

    def broadcast(self, tensor: Any, src: int, stream: Any = None) -> None:
        self.inside.set()
        self.held.wait(10)
        if self.error is not None:
            raise self.error
        self.did.append((tensor, src, stream))

    def destroy(self) -> None:
        self.did.append("destroyed")
        self.held.set()


def test_a_broadcast_is_handed_on() -> None:
    communicator = Communicator()
    communicator.held.set()
    Breakable(communicator).broadcast("weights", src=0, stream="now")
    assert communicator.did == [("weights", 0, "now")]


def test_what_nccl_says_can_be_told_from_other_errors() -> None:
    communicator = Communicator()
    communicator.held.set()
    communicator.error = RuntimeError("NCCL error: remote process exited")
    with pytest.raises(GroupBroke, match=r"^NCCL error: remote process exited$"):
        Breakable(communicator).broadcast("weights", src=0)


def test_a_communicator_that_does_nothing_is_refused() -> None:
    """Engines would take what lay in their memory for weights."""
    communicator = Communicator()
    communicator.available = False
    with pytest.raises(RuntimeError, match="NCCL's library could not be loaded, or VLLM_DISABLE_PYNCCL is set"):
        Breakable(communicator)


def test_a_call_into_nccl_ends_before_it_is_freed() -> None:
    communicator = Communicator()
    group = Breakable(communicator)
    sending = threading.Thread(target=group.broadcast, args=("weights", 0), daemon=True)
    sending.start()
    communicator.inside.wait(5)
    breaking = threading.Thread(target=group.destroy, daemon=True)
    breaking.start()
    breaking.join(0.2)
    assert communicator.did == []
    communicator.held.set()
    breaking.join(5)
    assert communicator.did == [("weights", 0, None), "destroyed"]


def test_a_call_that_waits_for_its_peers_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakable, "GRACE_S", 0.1)
    communicator = Communicator()
    group = Breakable(communicator)
    sending = threading.Thread(target=group.broadcast, args=("weights", 0), daemon=True)
    sending.start()
    communicator.inside.wait(5)
    group.destroy()
    sending.join(5)
    group.broadcast("more", src=0)
    assert communicator.did == ["destroyed", ("weights", 0, None)], "and nothing is asked of it afterwards"
