"""Monitor of one rank: records stages and messages, and samples the counters in a background thread."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds4sci.machine import processor
from ds4sci.monitor.counters import MachineCounters, ProcessCounters
from ds4sci.monitor.event_log import LINE_KEYS, MAX_SAMPLES, EventLog, log_file
from ds4sci.monitor.gpu import DeviceTimer, GpuCounters

MAX_CPU_SHARE = 1e-3
"""CPU time of the sampling thread relative to wall time. Samples that cost more are taken less often."""


class RankMonitor:
    """Listener of the stages of a rank (``ds4sci.train.stages``) that writes ``RUN/monitor/rank_N.jsonl``.

    run              the run folder
    attempt          number of this start of the run
    seconds          seconds between samples
    samples_machine  whether this rank also samples the counters of its machine: one rank per machine does

    Sampling begins with the first stage, in a thread that ends with ``close`` or with the process.
    """

    def __init__(
        self, run: Path, rank: int, *, attempt: int = 0, seconds: float = 1.0, samples_machine: bool = True,
        max_samples: int = MAX_SAMPLES,
    ) -> None:  # fmt: skip
        self.seconds, self.cpu_seconds = seconds, 0.0
        self._log = EventLog(log_file(run, rank), rank, attempt, max_samples=max_samples)
        self._process, self._gpu, self._timer = ProcessCounters(), GpuCounters(), DeviceTimer()
        self._machine = MachineCounters() if samples_machine else None
        self._reading, self._stopped, self._began = threading.Lock(), threading.Event(), time.monotonic()
        self._log.write(
            "message", name="monitor", host=socket.gethostname(), pid=os.getpid(), cores=processor.usable_cores(),
            seconds=seconds, stride=self._log.stride,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._sample_until_stopped, name="ds4sci-monitor", daemon=True)

    def begin(self, stage: str, values: Mapping[str, Any]) -> None:
        """Record the begin of a stage."""
        if self._thread.ident is None:
            self._thread.start()
        self._gpu.find()
        self._timer.begin(stage)
        self._log.write("begin", on="host", name=stage, **_without_own_keys(values), counters=self._counters())

    def end(self, stage: str, values: Mapping[str, Any]) -> None:
        """Record the end of a stage."""
        self._timer.end()
        self._log.write("end", on="host", name=stage, **_without_own_keys(values), counters=self._counters())

    def message(self, key: str, values: Mapping[str, Any]) -> None:
        """Record an event without duration."""
        self._log.write("message", name=key, **_without_own_keys(values))

    def close(self) -> None:
        """Take a last sample, record what sampling has cost, and close the file."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._write_device_stages(patience=0.1)
        wall = time.monotonic() - self._began
        self._log.write("message", name="monitor_cost", cpu_seconds=round(self.cpu_seconds, 4), seconds=round(wall, 3))
        self._log.close()
        self._process.close()
        if self._machine is not None:
            self._machine.close()

    def _sample_until_stopped(self) -> None:
        while not self._stopped.is_set():
            began = time.thread_time()
            self._write_sample()
            self._write_device_stages()
            cost = time.thread_time() - began
            self.cpu_seconds += cost
            self._stopped.wait(max(self.seconds * self._log.stride, cost / MAX_CPU_SHARE))
        self._write_sample()

    def _write_sample(self) -> None:
        values: dict[str, Any] = dict(self._counters())
        if self._machine is not None:
            values |= self._machine.read()
        self._log.write("sample", **values)

    def _counters(self) -> dict[str, float]:
        with self._reading:
            return self._process.read() | self._gpu.read()

    def _write_device_stages(self, patience: float = 0.0) -> None:
        for stage, first, last in self._timer.finished(patience):
            self._log.write("begin", at=first, on="device", name=stage)
            self._log.write("end", at=last, on="device", name=stage)


def _without_own_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of an event; a key that the line itself uses gets an underscore."""
    return {f"{key}_" if key in LINE_KEYS | {"at"} else key: value for key, value in values.items()}
