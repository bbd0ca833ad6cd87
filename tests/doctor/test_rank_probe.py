"""Probe of the connections between ranks: real processes that succeed, fail and hang."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ds4sci.doctor import rank_probe


def test_two_ranks_reduce() -> None:
    finding = rank_probe.probe("gloo", 2)
    assert finding.level == "ok", finding
    assert "right sums" in finding.detail
    assert not _ranks_left()


def _ranks_left() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [p for p in children if "ds4sci.doctor.rank_probe" in p.cmdline()]


def plant(monkeypatch: pytest.MonkeyPatch, programs: dict[int, str]) -> None:
    """Replace the program of the ranks."""

    def start(backend: str, rank: int, ranks: int, port: int, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as handle:
            return subprocess.Popen([sys.executable, "-c", programs[rank]], stdout=handle, stderr=handle)

    monkeypatch.setattr(rank_probe, "_start", start)


def test_a_hanging_rank_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = "import time; print('phase: connect the ranks', flush=True); time.sleep(60)"
    plant(monkeypatch, {0: "", 1: waiting})
    began = time.monotonic()
    finding = rank_probe.probe("gloo", 2, limit=2)
    assert time.monotonic() - began < 30
    assert finding.level == "problem"
    assert "rank 1 was still at 'connect the ranks' after 2 s" in finding.detail
    assert finding.remedy


def test_a_failing_rank_is_named_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = "print('phase: all-reduce of ranks 0, 1', flush=True); raise RuntimeError('Connection refused')"
    waiting = "import time; print('phase: connect the ranks', flush=True); time.sleep(60)"
    plant(monkeypatch, {0: waiting, 1: failing})
    began = time.monotonic()
    finding = rank_probe.probe("gloo", 2, limit=50)
    assert time.monotonic() - began < 40, "the others need not be waited for"
    assert "rank 1 failed at 'all-reduce of ranks 0, 1': RuntimeError: Connection refused" in finding.detail


def test_an_unknown_interface_is_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "absent0")
    remedy = rank_probe.remedy("gloo", rank_probe.Outcome(0, 1, "connect the ranks", "x"))
    assert "GLOO_SOCKET_IFNAME=absent0 names no interface" in remedy


def test_a_hostname_without_an_address_is_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    remedy = rank_probe.remedy("gloo", rank_probe.Outcome(0, 1, "connect the ranks", "x"))
    assert "does not resolve" in remedy
    assert "/etc/hosts" in remedy
