"""An environment that does what no environment should; nothing heavy is imported, so that its workers start at once."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LEAKED: list[bytearray] = []


class Hostile:
    """Does what the answer says, or goes on; `win` ends. What it says depends on seed and answers alone."""

    target_count = 7
    rules = "No rules."
    settings = SimpleNamespace(answer_tag="answer")

    def __init__(self) -> None:
        self.state: tuple[Any, ...] = ()

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        self.state = (seed,)
        return self._text(), {}

    def snapshot(self) -> tuple[Any, ...]:
        return self.state

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        self.state = snapshot

    def step(self, answer: str) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        word, _, rest = answer.partition(" ")
        found = getattr(self, f"_{word}", None)
        text, reward = (found(rest) if found else None) or (None, 0.25)
        self.state = (*self.state, answer)
        verdict = {"win": "solved", "odd": "splendid"}.get(word, "wrong")
        outcome = SimpleNamespace(verdict=verdict, answer="|".join(map(str, self.state[1:])), cause="")
        return text or self._text(), reward, word == "win", False, {"outcome": outcome}

    def cut(self) -> float:
        return 0.0

    def ceiling(self) -> float:
        return 1.0

    def sketch_key(self, sketch: str) -> str | None:
        return sketch or None

    def _text(self) -> str:
        return f"{len(self.state)} {zlib.crc32(repr(self.state).encode())}"

    # --- what an answer may ask for ----------------------------------------------------------------------------------

    def _raise(self, words: str) -> None:
        raise RuntimeError(words)

    def _leave(self, _: str) -> None:
        sys.exit("I am off")

    def _sleep(self, seconds: str) -> None:
        time.sleep(float(seconds))

    def _hold(self, seconds: str) -> None:
        """Sleep with the interpreter's lock in hand: no other thread runs, no signal handler of Python's."""
        ctypes.PyDLL(None).sleep(int(seconds))

    def _eat(self, _: str) -> None:
        eaten = []
        while True:
            eaten.append(bytearray(2**22))

    def _leak(self, mib: str) -> None:
        LEAKED.append(bytearray(int(mib) * 2**20))

    def _take(self, mib: str) -> None:
        bytearray(int(mib) * 2**20)

    def _exit(self, code: str) -> None:
        os._exit(int(code))

    def _crash(self, _: str) -> None:
        ctypes.string_at(0)

    def _once(self, path: str) -> None:
        """Crash the first time, wherever that is."""
        if not Path(path).exists():
            Path(path).touch()
            os._exit(9)

    def _print(self, mib: str) -> None:
        for _ in range(int(mib)):
            print("x" * 2**20)
        sys.stdout.flush()
        os.write(1, b"x" * 2**20)

    def _read(self, _: str) -> None:
        input()

    def _forge(self, hexadecimal: str) -> None:
        """Write to every socket there is."""
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as found:
                found.sendall(bytes.fromhex(hexadecimal))

    def _close(self, _: str) -> None:
        os.closerange(3, 256)
        time.sleep(600)

    def _linger(self, path: str) -> None:
        """Leave a thread and a process behind, say the process's number, and hang."""
        threading.Thread(target=time.sleep, args=(600,)).start()
        child = subprocess.Popen(["sleep", "600"])
        Path(path).write_text(str(child.pid))
        time.sleep(600)

    def _number(self, _: str) -> tuple[Any, float]:
        return 7, 0.0

    def _thing(self, _: str) -> tuple[Any, float]:
        return object(), 0.0

    def _huge(self, characters: str) -> tuple[str, float]:
        return "x" * int(characters), 0.0

    def _nan(self, _: str) -> tuple[None, float]:
        return None, float("nan")

    def _reward(self, _: str) -> tuple[None, Any]:
        return None, "much"

    def _lambda(self, _: str) -> None:
        self.state = (*self.state, lambda: 0)

    def _what(self, _: str) -> tuple[str, float]:
        """What a worker has: heavy modules, its variables."""
        names = ("torch", "vllm", "ray", "gymnasium", "numpy", "transformers")
        heavy = [name for name in names if name in sys.modules]
        return f"{heavy} {os.environ['CUDA_VISIBLE_DEVICES']!r} {sorted(os.listdir('/proc/self/fd'))}", 0.0


class NoMap(Hostile):
    def __init__(self) -> None:
        raise OSError("no such\nmap")


class EndsAtOnce(Hostile):
    def __init__(self) -> None:
        os._exit(4)


class NeverMade(Hostile):
    def __init__(self) -> None:
        time.sleep(600)


class Large(Hostile):
    """Takes 300 MiB before the first episode."""

    def __init__(self) -> None:
        super().__init__()
        LEAKED.append(bytearray(300 * 2**20))
