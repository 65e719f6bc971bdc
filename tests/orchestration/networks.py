"""Ray nodes with addresses of their own on one machine: a network namespace each, joined by a bridge."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.orchestration.test_job_submit import BIN

LIMIT_S = 90.0
PORT, DASHBOARD = 6390, 8270  # each node has all ports to itself
RAYS = Path("/tmp/ray")


class Network:
    """Nodes 10.213.7.1, .2, ...; the first is the head. All are ended by `close`."""

    def __init__(self) -> None:
        self._tag, self._numbers = f"s{os.getpid() % 10_000}", itertools.count(1)
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="nodes-"))
        RAYS.mkdir(exist_ok=True)
        self.environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}
        self.environment.pop("RAY_ADDRESS", None)
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")

    def add(self, cpus: int, labels: str) -> str:
        """One more node, whose address is returned once it is there."""
        number = next(self._numbers)
        name, address = f"{self._tag}n{number}", f"10.213.7.{number}"
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "veth", "peer", "name", "wire0", "netns", name)
        _ip("link", "set", name, "master", self._bridge, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire0")
        for link in ("wire0", "lo"):
            _ip("-n", name, "link", "set", link, "up")
        where = ["--head", f"--port={PORT}", f"--dashboard-port={DASHBOARD}"] if number == 1 else [
            f"--address={self.head}:{PORT}"
        ]  # fmt: skip
        self._nodes[address] = subprocess.Popen(
            [
                *self._inside(number), str(BIN / "ray"), "start", "--block", f"--node-ip-address={address}", *where,
                f"--num-cpus={cpus}", f"--labels={labels}", f"--object-store-memory={100 << 20}",
            ],
            env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._wait_for(address)
        return address

    @property
    def head(self) -> str:
        return "10.213.7.1"

    def in_head(self, *command: str) -> list[str]:
        """The command line of a program that runs on the head."""
        return [*self._inside(1), *command]

    def remove(self, address: str) -> None:
        """A node is gone at once, with all that runs on it."""
        name = f"{self._tag}n{address.rpartition('.')[2]}"
        _ip("link", "del", name)
        process = self._nodes.pop(address)
        for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
            with suppress(ProcessLookupError):  # one whose parent was killed before may end by itself
                os.kill(int(pid), signal.SIGKILL)
        process.wait(LIMIT_S)
        _ip("netns", "del", name)

    def close(self) -> None:
        for address in reversed(list(self._nodes)):
            with suppress(subprocess.SubprocessError):  # what is left of the others is taken away all the same
                self.remove(address)
        _ip("link", "del", self._bridge)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _inside(self, number: int) -> list[str]:
        """What a command line begins with that runs on a node. Each has a folder of its own where Ray keeps its files:

        in a common one nodes unpack the same job side by side, and take it from under each other's feet.
        """
        own = self._folder / str(number)
        own.mkdir(exist_ok=True)
        mounted = ["sh", "-c", f'mount --bind "$0" {RAYS} && exec "$@"', str(own)]
        return ["ip", "netns", "exec", f"{self._tag}n{number}", *mounted]

    @property
    def _bridge(self) -> str:
        return f"{self._tag}br"

    def _wait_for(self, address: str) -> None:
        """Until the head counts the node."""
        said, deadline = "", time.monotonic() + LIMIT_S
        ask = f"import ray; ray.init('{self.head}:{PORT}', logging_level='error', log_to_driver=False)\n"
        ask += "print(*(n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']))"
        while address not in said.split():
            assert self._nodes[address].poll() is None, f"the node {address} ended"
            assert time.monotonic() < deadline, f"{address} did not join: {said}"
            look = self.in_head(sys.executable, "-c", ask)
            done = subprocess.run(look, env=self.environment, capture_output=True, text=True, timeout=60)
            said = done.stdout + done.stderr


@contextmanager
def network() -> Iterator[Network]:
    """A bridge without nodes."""
    one = Network()
    try:
        yield one
    finally:
        one.close()


def why_not() -> str:
    """What keeps this machine from having such nodes; empty where nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no `ip` (apt install iproute2)"
    name = f"s{os.getpid() % 10_000}try"
    for made, away in (
        (["netns", "add", name], ["netns", "del", name]),
        (["link", "add", name, "type", "bridge"], ["link", "del", name]),
    ):
        done = subprocess.run(["ip", *made], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"ip {' '.join(made)}: {done.stderr.strip()}"
        _ip(*away)
    return ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)
