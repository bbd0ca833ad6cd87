"""Counters and stage times of the GPU of this process. Everything is empty where torch has not started CUDA.

Memory comes from torch, the use of the GPU from NVML if ``pynvml`` is installed. ``nvidia-smi`` is not used: starting
it needs more CPU time than a run may spend on its monitor.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from typing import Any


def loaded_cuda() -> Any:
    """``torch.cuda`` if this process uses a GPU, else None. Does not import torch and does not start CUDA."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


class GpuCounters:
    """Memory and use of the GPU that a thread of this process uses.

    index  of the GPU; None until ``find`` has been called in that thread. CUDA's current device belongs to a thread.
    """

    def __init__(self) -> None:
        self.index: int | None = None
        self._nvml: Any = None
        self._device: Any = None
        self._looked = False

    def find(self) -> None:
        """Use the current GPU of the calling thread."""
        cuda = loaded_cuda()
        if cuda is not None:
            self.index = cuda.current_device()

    def read(self) -> dict[str, float]:
        """Return ``gpu_memory`` and ``gpu_reserved`` (bytes in tensors, and held by torch), ``gpu_use`` (fraction of
        the driver's last sampling period in which a kernel ran) and ``gpu_total`` (bytes used by all processes)."""
        cuda = loaded_cuda()
        if cuda is None or self.index is None:
            return {}
        allocated, reserved = cuda.memory_allocated(self.index), cuda.memory_reserved(self.index)
        found = {"gpu_memory": float(allocated), "gpu_reserved": float(reserved)}
        if not self._looked:
            self._looked = True
            with contextlib.suppress(Exception):  # no pynvml, no driver library, an unknown device: figures stay out
                import pynvml

                pynvml.nvmlInit()
                uuid = f"GPU-{cuda.get_device_properties(self.index).uuid}"
                self._nvml, self._device = pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                found["gpu_use"] = self._nvml.nvmlDeviceGetUtilizationRates(self._device).gpu / 100
                found["gpu_total"] = float(self._nvml.nvmlDeviceGetMemoryInfo(self._device).used)
        return found


class DeviceTimer:
    """Times at which the GPU begins and ends its work of a stage, measured by CUDA events on the current stream.

    The host queues work ahead of the GPU, therefore these times are later than those of the host. They are known once
    the GPU has reached the end of the stage.
    """

    def __init__(self) -> None:
        self._origin: tuple[float, int, Any] | None = None
        self._open: list[tuple[str, Any]] = []
        self._pending: deque[tuple[str, Any, Any]] = deque()

    def begin(self, stage: str) -> None:
        """Mark the begin of a stage."""
        self._open.append((stage, self._event()))

    def end(self) -> None:
        """Mark the end of the innermost stage."""
        if self._open:
            stage, first = self._open.pop()
            last = self._event()
            if first is not None and last is not None:
                self._pending.append((stage, first, last))

    def finished(self, patience: float = 0.0) -> list[tuple[str, float, float]]:
        """Return and forget the stages that the GPU has finished: (stage, begin, end) in seconds since 1970.

        patience  seconds to wait for the others
        """
        found: list[tuple[str, float, float]] = []
        cuda, until = loaded_cuda(), time.monotonic() + patience
        if cuda is None or self._origin is None:
            return found
        at, device, origin = self._origin
        with contextlib.suppress(RuntimeError), cuda.device(device):  # after an error of the GPU there are no times
            while self._pending:
                stage, first, last = self._pending[0]
                if last.query():
                    first_at, last_at = (at + origin.elapsed_time(event) / 1e3 for event in (first, last))
                    found.append((stage, first_at, last_at))
                    self._pending.popleft()
                elif time.monotonic() > until:
                    break
                else:
                    time.sleep(0.005)
        return found

    def _event(self) -> Any:
        cuda = loaded_cuda()
        if cuda is None:
            return None
        if self._origin is None:
            origin = cuda.Event(enable_timing=True)
            origin.record()
            origin.synchronize()
            self._origin = (time.time(), cuda.current_device(), origin)
        event = cuda.Event(enable_timing=True)
        event.record()
        return event
