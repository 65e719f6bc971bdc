"""vLLM's NCCL communicator, whose broadcasts another thread can break off: by themselves they wait for ever."""

from __future__ import annotations

import threading
from typing import Any, Protocol

BROKEN_OFF = "broken off"  # a key in the store where the group met: the sender has given up its broadcast
GRACE_S = 5.0  # for a call into NCCL, which only hands over work


class Communicator(Protocol):
    """What is used of vLLM's PyNcclCommunicator. available: False where NCCL's library could not be loaded."""

    available: bool

    def broadcast(self, tensor: Any, src: int, stream: Any = None) -> None: ...
    def destroy(self) -> None: ...


class GroupBroke(RuntimeError):
    """NCCL's own words, where it has lost its peers."""


class Breakable:
    """A communicator for broadcasts. `destroy`, from whatever thread, ends those under way, and later ones do nothing.

    What was broken off returns as if it had come to its end, with any bytes: who breaks off has to tell. Raises
    RuntimeError where there is no NCCL: such a communicator would silently send and receive nothing.
    """

    def __init__(self, communicator: Communicator) -> None:
        if not communicator.available:
            raise RuntimeError("NCCL's library could not be loaded, or VLLM_DISABLE_PYNCCL is set")
        self._communicator, self._turn, self._ended = communicator, threading.Lock(), False

    def broadcast(self, tensor: Any, src: int, stream: Any = None) -> None:
        """Raises GroupBroke."""
        with self._turn:
            if self._ended:
                return
            try:
                self._communicator.broadcast(tensor, src=src, stream=stream)
            except RuntimeError as error:
                raise GroupBroke(str(error)) from error

    def destroy(self) -> None:
        self._ended = True
        # A call into a communicator that is freed meanwhile may crash, so it is waited for. One that waits for its
        # peers on the host comes back by nothing else.
        mine = self._turn.acquire(timeout=GRACE_S)
        try:
            self._communicator.destroy()
        finally:
            if mine:
                self._turn.release()
