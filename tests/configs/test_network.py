"""Collectives go over the interface the cluster knows a machine by."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from configs.network import GLOO, VLLM, interface_of, speak_from


@pytest.fixture(autouse=True)
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(family: int, address: str) -> SimpleNamespace:
        return SimpleNamespace(family=family, address=address)

    there = {
        "lo": [one(socket.AF_INET, "127.0.0.1"), one(socket.AF_INET6, "::1")],
        "docker0": [one(socket.AF_INET, "172.17.0.1"), one(socket.AF_PACKET, "10.0.0.5")],
        "eth1": [one(socket.AF_INET, "192.0.2.9"), one(socket.AF_INET, "10.0.0.5")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: there)
    for name in (GLOO, VLLM):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("address", "name"), [("10.0.0.5", "eth1"), ("127.0.0.1", "lo"), ("::1", "lo"), ("203.0.113.7", None)]
)
def test_the_interface_is_found_by_its_address(address: str, name: str | None) -> None:
    assert interface_of(address) == name


def test_it_is_used_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:

    speak_from("203.0.113.7")  # a translated address: gloo looks for itself
    assert GLOO not in os.environ
    monkeypatch.delenv(VLLM)
    speak_from("10.0.0.5")
    assert (os.environ[GLOO], os.environ[VLLM]) == ("eth1", "10.0.0.5")
    monkeypatch.setenv(GLOO, "ib0")
    speak_from("127.0.0.1")
    assert (os.environ[GLOO], os.environ[VLLM]) == ("ib0", "10.0.0.5")
