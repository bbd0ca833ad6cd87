"""Counters of a process and of its machine: CPU time, memory, disk and network bytes.

On Linux they are read from files of ``/proc`` that stay open: about 0.1 ms of CPU time for all of them. Elsewhere
``psutil`` reads them. Counters only grow; rates are differences of two readings.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

SECTOR = 512
"""Bytes of a sector in ``/proc/diskstats``, on every disk."""
CHILDREN_EVERY = 10
"""Readings between two searches for child processes."""

Interfaces = dict[str, list[int]]


class ProcessCounters:
    """Counters of this process and of its child processes, such as the workers of a data loader."""

    def __init__(self) -> None:
        self._files = _Files() if sys.platform == "linux" else None
        self._process = psutil.Process()
        self._page = os.sysconf("SC_PAGE_SIZE") if self._files else 0
        self._tick = os.sysconf("SC_CLK_TCK") if self._files else 0
        self._children: dict[int, tuple[float, int, int]] = {}
        self._ended = (0.0, 0, 0)
        self._readings = 0

    def read(self) -> dict[str, float]:
        """Return ``cpu_s`` (CPU seconds of all threads), ``rss`` (resident bytes of this process without its children),
        ``read`` and ``written`` (bytes from and to a disk, where the system counts them)."""
        if self._files is None:
            return self._with_psutil()
        found = {"cpu_s": time.process_time(), "rss": float(self._files.numbers("/proc/self/statm")[1] * self._page)}
        own = _io(self._files.text("/proc/self/io"))
        cpu, read, written = self._of_children()
        found["cpu_s"] = round(found["cpu_s"] + cpu, 4)
        if own is not None:
            found["read"], found["written"] = own[0] + read, own[1] + written
        return found

    def close(self) -> None:
        """Close the files."""
        if self._files is not None:
            self._files.close()

    def _of_children(self) -> tuple[float, int, int]:
        """CPU seconds, bytes read and bytes written of all children so far. Ended ones count up to their last reading;
        one that starts and ends between two searches is not seen."""
        pids = set(self._children)
        if self._readings % CHILDREN_EVERY == 0:
            pids |= _children()
        self._readings += 1
        for pid in pids:
            try:
                stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
                io = _io(Path(f"/proc/{pid}/io").read_bytes()) or (0, 0)
                self._children[pid] = ((int(stat[11]) + int(stat[12])) / self._tick, *io)
            except OSError:
                ended = self._children.pop(pid, (0.0, 0, 0))
                self._ended = _sum(self._ended, ended)
        total = self._ended
        for one in self._children.values():
            total = _sum(total, one)
        return total

    def _with_psutil(self) -> dict[str, float]:
        found = {"cpu_s": time.process_time(), "rss": float(self._process.memory_info().rss)}
        if hasattr(self._process, "io_counters"):
            io = self._process.io_counters()
            found["read"], found["written"] = io.read_bytes, io.write_bytes
        return found


class MachineCounters:
    """Counters of the whole machine."""

    def __init__(self) -> None:
        self._files = _Files() if sys.platform == "linux" else None
        self._tick = os.sysconf("SC_CLK_TCK") if self._files else 0
        self._disks = _disks()

    def read(self) -> dict[str, float | Interfaces]:
        """Return ``machine_cpu_s`` (busy CPU seconds of all cores), ``available`` (bytes of memory that can still be
        allocated), ``disk_read`` and ``disk_written`` (bytes of all disks), and ``net`` (interface → bytes received and
        sent, ``lo`` included)."""
        if self._files is None:
            return self._with_psutil()
        user, nice, system, _, _, irq, softirq = self._files.numbers("/proc/stat")[:7]
        memory = self._files.text("/proc/meminfo")
        at = memory.index(b"MemAvailable:") + 13
        found: dict[str, float | Interfaces] = {
            "machine_cpu_s": (user + nice + system + irq + softirq) / self._tick,
            "available": 1024 * int(memory[at : memory.index(b"kB", at)]),
            "net": _interfaces(self._files.text("/proc/net/dev")),
        }
        if self._disks:
            read = written = 0
            for line in self._files.text("/proc/diskstats").splitlines():
                fields = line.split(None, 10)
                if fields[2] in self._disks:
                    read, written = read + int(fields[5]), written + int(fields[9])
            found["disk_read"], found["disk_written"] = read * SECTOR, written * SECTOR
        return found

    def close(self) -> None:
        """Close the files."""
        if self._files is not None:
            self._files.close()

    def _with_psutil(self) -> dict[str, float | Interfaces]:
        times, disks = psutil.cpu_times(), psutil.disk_io_counters()
        found: dict[str, float | Interfaces] = {
            "machine_cpu_s": sum(times) - times.idle - getattr(times, "iowait", 0.0),
            "available": psutil.virtual_memory().available,
            "net": {k: [v.bytes_recv, v.bytes_sent] for k, v in psutil.net_io_counters(pernic=True).items()},
        }
        if disks is not None:
            found["disk_read"], found["disk_written"] = disks.read_bytes, disks.write_bytes
        return found


class _Files:
    """Files of ``/proc``, each opened at the first reading and read again from its beginning."""

    def __init__(self) -> None:
        self._handles: dict[str, int] = {}

    def _handle(self, path: str) -> int:
        if path not in self._handles:
            self._handles[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._handles[path]

    def text(self, path: str) -> bytes:
        """Content of a file; empty if this process may not read it."""
        try:
            handle, size = self._handle(path), 1 << 16
            content = part = os.pread(handle, size, 0)
            while part:  # a file of /proc may return less than it has
                part = os.pread(handle, size, len(content))
                content += part
            return content
        except OSError:
            return b""

    def numbers(self, path: str) -> list[int]:
        """Numbers of the first line of a file."""
        line = os.pread(self._handle(path), 256, 0).split(b"\n", 1)[0]
        return [int(x) for x in line.split() if x.isdigit()]

    def close(self) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])


def _io(text: bytes) -> tuple[int, int] | None:
    """``read_bytes`` and ``write_bytes`` of a ``/proc/PID/io``."""
    values = dict(line.split(b":") for line in text.splitlines())
    if b"read_bytes" not in values:
        return None
    return int(values[b"read_bytes"]), int(values[b"write_bytes"])


def _sum(a: tuple[float, int, int], b: tuple[float, int, int]) -> tuple[float, int, int]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _children() -> set[int]:
    """Child processes of all threads of this process."""
    found: set[int] = set()
    try:
        for thread in Path("/proc/self/task").iterdir():
            found.update(map(int, (thread / "children").read_bytes().split()))
    except OSError:  # a kernel without these files, or a thread that has just ended
        pass
    return found


def _disks() -> set[bytes]:
    """Block devices that are hardware: partitions, loop devices and volumes made of other disks count bytes twice."""
    folder = Path("/sys/block")
    return {one.name.encode() for one in folder.iterdir() if (one / "device").exists()} if folder.is_dir() else set()


def _interfaces(text: bytes) -> Interfaces:
    """Bytes received and sent by each interface that has been used."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, values = line.partition(b":")
        fields = values.split(None, 9)
        if fields[0] != b"0" or fields[8] != b"0":
            found[name.strip().decode()] = [int(fields[0]), int(fields[8])]
    return found
