"""The process that runs environments for a rollout actor: `python -m envs.worker ACTOR_PID MEMORY_MIB`.

Its standard input is a socket to the actor. First comes a pickle of the actor's `sys.path` and of a function that
makes an environment; it answers with the environment's `target_count` once one is made. Then it answers a request at a
time, and with its socket, or its actor, it ends. What environments print on the standard output is dropped.

Until the first environment is asked for nothing of the project is imported but what is imported here: starts are fast.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from envs.worker_episodes import Episodes
from envs.worker_messages import (
    DONE,
    NO_MEMORY,
    PREFIX,
    RAISED,
    TELL,
    Reply,
    length_of,
    read_call,
    reply_bytes,
    said_of,
)

PR_SET_PDEATHSIG = 1
NO_MEMORY_REPLY = reply_bytes(Reply(NO_MEMORY, None))


def main(actor_pid: int, memory_mib: int) -> None:
    die_with(actor_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the actor
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # a system short of memory takes a worker, not its actor with the engine
        Path("/proc/self/oom_score_adj").write_text("1000")
    with private_channel() as actor, suppress(ConnectionError):
        # A call that hangs has no answer: what comes instead is where it is, and then the process is killed.
        faulthandler.register(TELL, file=actor.fileno(), all_threads=False)
        if (episodes := greeted(actor)) is not None:
            limit_memory(memory_mib)
            while (message := received(actor)) is not None:
                reply = answered(episodes, message)
                actor.sendall(reply)
                if reply is NO_MEMORY_REPLY:
                    return


def die_with(actor_pid: int) -> None:
    """Be killed when the actor ends, whatever is running here then."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != actor_pid:  # it has ended before
        raise SystemExit(1)


def private_channel() -> socket.socket:
    """The socket to the actor, out of the environments' reach: what they print or read is none of it."""
    channel = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    return channel


def greeted(actor: socket.socket) -> Episodes | None:
    """Make the first environment and say so, or why not; None where there is none."""
    greeting = received(actor)
    if greeting is None:
        return None
    try:
        sys.path[:], factory = pickle.loads(greeting)
        episodes = Episodes(pickle.loads(factory))
    except BaseException as error:  # whatever it is, the actor has to hear of it
        actor.sendall(reply_bytes(Reply(RAISED, said_of(error))))
        return None
    actor.sendall(reply_bytes(Reply(DONE, episodes.target_count)))
    return episodes


def limit_memory(memory_mib: int) -> None:
    """So much more address space than now. The hard limit stays: what is started here may set limits of its own."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def answered(episodes: Episodes, message: bytes) -> bytes:
    try:
        return reply_bytes(episodes.answer(read_call(message)))
    except MemoryError:
        # What was to be sent is made already, and there is room to send it.
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return NO_MEMORY_REPLY
    except BaseException as error:  # SystemExit too: an environment ends no worker
        return reply_bytes(Reply(RAISED, said_of(error)))


def received(channel: socket.socket) -> bytes | None:
    """The next message; None when there will be no other."""
    prefix = _exactly(channel, PREFIX.size)
    return None if prefix is None else _exactly(channel, length_of(prefix))


def _exactly(channel: socket.socket, count: int) -> bytes | None:
    whole = bytearray(count)
    rest = memoryview(whole)
    while rest:
        taken = channel.recv_into(rest)
        if not taken:
            return None
        rest = rest[taken:]
    return bytes(whole)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # threads that an environment left behind keep nobody waiting
