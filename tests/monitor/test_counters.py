"""Counters of process and machine against psutil, and against work of known size."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from ds4sci.monitor import counters
from ds4sci.monitor.counters import MachineCounters, ProcessCounters

linux = pytest.mark.skipif(sys.platform != "linux", reason="the files of /proc are Linux's")


def busy(seconds: float) -> None:
    began = time.process_time()
    while time.process_time() < began + seconds:
        pass


def test_cpu_time_and_memory_of_this_process() -> None:
    own = ProcessCounters()
    before = own.read()
    block = bytearray(os.urandom(1)) * 50_000_000  # written, and so resident
    busy(0.2)
    after = own.read()
    assert 0.2 <= after["cpu_s"] - before["cpu_s"] < 1.5
    assert after["rss"] - before["rss"] >= 0.95 * len(block)
    assert after["rss"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    own.close()


@linux
def test_children_count_also_after_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "CHILDREN_EVERY", 1)
    own = ProcessCounters()
    own.read()
    before = own.read()["cpu_s"] - time.process_time()
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    child = context.Process(target=lambda: (busy(0.3), gate.wait()))
    child.start()
    seen, end = 0.0, time.monotonic() + 30
    while seen < 0.25 and time.monotonic() < end:
        time.sleep(0.05)
        seen = own.read()["cpu_s"] - time.process_time() - before
    gate.set()
    child.join()
    assert seen >= 0.25
    assert own.read()["cpu_s"] - time.process_time() - before >= 0.25, "an ended child must not be subtracted"
    own.close()


@linux
def test_written_bytes_reach_the_disk_counter(tmp_path: Path) -> None:
    own = ProcessCounters()
    before = own.read()
    if "written" not in before:
        pytest.skip("this process may not read /proc/self/io")
    with (tmp_path / "x").open("wb") as handle:
        handle.write(os.urandom(4_000_000))
        handle.flush()
        os.fsync(handle.fileno())
    written = own.read()["written"] - before["written"]
    if written == 0:
        pytest.skip("the temporary folder is in memory")
    assert 4_000_000 <= written < 5_000_000
    own.close()


def test_machine_counters_are_those_of_psutil() -> None:
    machine = MachineCounters()
    ours = machine.read()
    times, net = psutil.cpu_times(), psutil.net_io_counters(pernic=True)
    # Guest time is part of user time; the kernel counts it twice.
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    steal = getattr(times, "steal", 0.0)
    busy_seconds = sum(times) - times.idle - getattr(times, "iowait", 0.0) - guest - steal
    assert ours["machine_cpu_s"] == pytest.approx(busy_seconds, abs=5.0)
    assert ours["available"] == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    interfaces = ours["net"]
    assert isinstance(interfaces, dict)
    for name, (received, sent) in interfaces.items():
        assert received <= net[name].bytes_recv
        assert sent <= net[name].bytes_sent
    assert {name for name, one in net.items() if one.bytes_recv + one.bytes_sent} >= set(interfaces)
    machine.close()


@linux
def test_disk_counters_are_those_of_psutil() -> None:
    machine = MachineCounters()
    ours, all_disks = machine.read(), psutil.disk_io_counters(perdisk=True) or {}
    if "disk_read" not in ours:
        pytest.skip("this machine shows no disk")
    names = {name.decode() for name in counters._disks()}
    later = sum(one.read_bytes for name, one in all_disks.items() if name in names)
    assert isinstance(ours["disk_read"], int)
    assert 0 < ours["disk_read"] <= later
    assert later - ours["disk_read"] < 1e9
    machine.close()


def test_psutil_takes_the_place_of_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = ProcessCounters().read(), MachineCounters().read()
    monkeypatch.setattr(counters.sys, "platform", "another system")
    process, machine = ProcessCounters(), MachineCounters()
    assert process.read().keys() == usual[0].keys()
    assert machine.read().keys() >= usual[1].keys()
    assert process.read()["rss"] == pytest.approx(usual[0]["rss"], rel=0.1)
    assert machine.read()["machine_cpu_s"] == pytest.approx(usual[1]["machine_cpu_s"], rel=0.2)
    process.close()
    machine.close()
