"""Description of the system of a submission: the 33 fields of ``systems/SYS.json``.

Fields that a program can read are filled in from the log and, if the runs were made on this host, from the machine.
All others hold ``UNKNOWN`` for the submitter to replace.
"""

from __future__ import annotations

import platform
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from ds4sci.machine import provenance
from ds4sci.mlperf.log_file import LogFile

UNKNOWN = "unknown: to be filled in"

FIELDS = (
    "submitter", "division", "status", "system_name", "number_of_nodes", "host_processors_per_node",
    "host_processor_model_name", "host_processor_core_count", "host_processor_vcpu_count", "host_processor_frequency",
    "host_processor_caches", "host_processor_interconnect", "host_memory_capacity", "host_storage_type",
    "host_storage_capacity", "host_networking", "host_networking_topology", "host_memory_configuration",
    "accelerators_per_node", "accelerator_model_name", "accelerator_host_interconnect", "accelerator_frequency",
    "accelerator_on-chip_memories", "accelerator_memory_configuration", "accelerator_memory_capacity",
    "accelerator_interconnect", "accelerator_interconnect_topology", "cooling", "hw_notes", "framework",
    "other_software_stack", "operating_system", "sw_notes",
)  # fmt: skip
"""Fields that upstream's ``system_desc_checker`` requires."""


def describe(log: LogFile, name: str, storage: Path) -> dict[str, str]:
    """Return all fields of the system ``name``, as text, as upstream's checker needs.

    storage  a path on the storage that held the data
    """
    found: dict[str, Any] = {
        "submitter": log.value("submission_org"),
        "division": log.value("submission_division"),
        "status": log.value("submission_status"),
        "system_name": name,
        "number_of_nodes": log.value("number_of_nodes"),
        "accelerators_per_node": log.value("accelerators_per_node"),
        "hw_notes": log.value("submission_platform"),
    }
    if log.value("number_of_nodes") == 1:
        found |= {"host_networking": "none (one node)", "host_networking_topology": "none (one node)"}
    if not log.value("accelerators_per_node"):
        found |= {field: "none" for field in FIELDS if field.startswith("accelerator_")}
    if is_this_host(log):
        found |= _this_host(storage, has_accelerators=bool(log.value("accelerators_per_node")))
    return {field: UNKNOWN if found.get(field) in (None, "") else str(found[field]) for field in FIELDS}


def is_this_host(log: LogFile) -> bool:
    """Whether the run was made on this host, as far as the log states it."""
    return socket.gethostname() in [event.metadata.get("host") for event in log.all("cache_clear")]


def _this_host(storage: Path, *, has_accelerators: bool) -> dict[str, Any]:
    machine = provenance.describe()
    versions = machine["versions"]
    frequency = _or_none(lambda: psutil.cpu_freq().max or psutil.cpu_freq().current)
    found: dict[str, Any] = {
        "host_processors_per_node": _sockets(),
        "host_processor_model_name": machine["cpu"],
        "host_processor_core_count": psutil.cpu_count(logical=False),
        "host_processor_vcpu_count": psutil.cpu_count(),
        "host_processor_frequency": f"{frequency:.0f} MHz" if frequency else None,
        "host_processor_caches": _caches(),
        "host_memory_capacity": f"{machine['memory_gb']} GiB",
        "host_storage_capacity": f"{shutil.disk_usage(storage).total / 2**30:.0f} GiB",
        "framework": ", ".join(f"{key} {versions[key]}" for key in ("torch", "deepspeed", "ds4sci") if key in versions),
        "other_software_stack": f"Python {machine['python']}, numpy {versions.get('numpy', '?')}",
        "operating_system": _or_none(lambda: platform.freedesktop_os_release()["PRETTY_NAME"]) or machine["system"],
        "sw_notes": f"ds4sci commit {machine['commit']}",
    }
    if has_accelerators and machine["gpus"]:
        gpu = machine["gpus"][0]
        found |= {"accelerator_model_name": gpu["name"], "accelerator_memory_capacity": f"{gpu['memory_gb']} GiB"}
    return found


def _sockets() -> int | None:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return None
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return len({line for line in lines if line.startswith("physical id")}) or None


def _caches() -> str | None:
    """Sizes of the caches of one core, such as ``L1 Data 32K, L2 Unified 512K``."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        files = [folder / name for name in ("level", "type", "size")]
        if all(file.is_file() for file in files):
            level, kind, size = (file.read_text(encoding="ascii").strip() for file in files)
            found.append(f"L{level} {kind} {size}")
    return ", ".join(found) or None


def _or_none(read: Callable[[], Any]) -> Any:
    """Result of ``read``, or None where the system does not have it."""
    try:
        return read()
    except (OSError, AttributeError, KeyError, NotImplementedError):
        return None
