"""Which network a process speaks over: the one whose address it has on the cluster."""

from __future__ import annotations

import os
import socket

import psutil

# What gloo and vLLM would find out by themselves, from the machine's name. Many machines have their own name stand for
# the loopback interface, which no other machine can reach.
GLOO, VLLM = "GLOO_SOCKET_IFNAME", "VLLM_HOST_IP"


def speak_from(address: str) -> None:
    """Have collectives of this process use the interface with that address, unless its environment says otherwise.

    Call it before the first group is made.
    """
    os.environ.setdefault(VLLM, address)
    if (name := interface_of(address)) is not None:
        os.environ.setdefault(GLOO, name)


def interface_of(address: str) -> str | None:
    """The network interface that has this address; None where none has it, as behind a translated one."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.family in (socket.AF_INET, socket.AF_INET6) and one.address == address for one in addresses):
            return name
    return None
