"""``ds4sci doctor``: findings on this machine and on strange ones, in the report and as JSON."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import ds4sci.doctor
from ds4sci.cli import main
from ds4sci.doctor import builds, distributions, hardware, rank_probe, storage
from ds4sci.doctor.finding import Finding
from ds4sci.train import extension_builds


def call(*arguments: str) -> int:
    """Exit code of ``ds4sci ARGUMENTS``."""
    with pytest.raises(SystemExit) as stopped:
        main.main(list(arguments))
    return int(stopped.value.code or 0)


@pytest.fixture
def without_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the probe that starts processes."""
    checks = tuple(check for check in ds4sci.doctor.CHECKS if check is not rank_probe.rank_connections)
    monkeypatch.setattr(ds4sci.doctor, "CHECKS", checks)


@pytest.mark.usefixtures("without_ranks")
def test_every_section_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor", "--json") == 0
    findings = json.loads(capsys.readouterr().out)
    assert {finding["section"] for finding in findings} == {
        "packages", "processor", "accelerators", "compiler", "extensions", "disk", "extras", "kernels",
    }  # fmt: skip
    names = {finding["name"] for finding in findings}
    assert names >= {"numa", "libaio", "shared memory", "evoformer_attention · float32 on cpu"}


def test_missing_packages_are_problems(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = distributions.installed
    monkeypatch.setattr(distributions, "installed", lambda name: None if name == "gemmi" else real(name))
    monkeypatch.setattr(builds.shutil, "which", lambda name: None)
    monkeypatch.setattr(ds4sci.doctor, "CHECKS", (distributions.packages, builds.compiler))
    assert call("doctor") == 1
    shown = capsys.readouterr().out
    assert "pip install gemmi" in shown
    assert "apt-get install -y g++" in shown


def test_interrupted_and_running_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name in ("killed", "running", "done", "foreign"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.flock").touch()
    (tmp_path / "killed" / "lock").touch()
    (tmp_path / "foreign" / "lock").touch()
    (tmp_path / "done" / "done.so").touch()
    with (tmp_path / "running.flock").open("a") as handle, (tmp_path / "foreign" / "lock").open():
        fcntl.flock(handle, fcntl.LOCK_EX)
        seen = {finding.name: finding for finding in builds.extensions()}
    assert str(tmp_path / "killed" / "lock") in seen["killed"].detail
    assert "no process holds it" in seen["killed"].detail
    assert seen["killed"].level == "optional"
    assert "another process is building it (process " in seen["running"].detail
    assert "is building it" in seen["foreign"].detail
    assert seen["foreign"].level == "ok"
    assert seen["done"].detail == "built"
    assert extension_builds.cache_folder() == tmp_path


def test_kernel_builds_in_progress(tmp_path: Path) -> None:
    for name in ("held", "free"):
        (tmp_path / f"{name}.lock").touch()
    with (tmp_path / "held.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        (finding,) = builds.native_locks(tmp_path)
    assert finding.name == "kernels · held"


@pytest.mark.parametrize(
    ("megabytes", "gpus", "level"),
    [(60, 2, "problem"), (500, 2, "optional"), (8000, 2, "ok"), (60, 1, "ok"), (60, 0, "ok")],
)
def test_shared_memory_matters_to_several_gpus(
    megabytes: int, gpus: int, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = megabytes << 20
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: SimpleNamespace(total=size, used=0, free=size))
    (finding,) = storage.shared_memory(tmp_path, gpus)
    assert finding.level == level
    assert ("--shm-size" in finding.remedy) == (level != "ok")


def test_a_machine_without_shared_memory_or_numa(tmp_path: Path) -> None:
    (finding,) = storage.shared_memory(tmp_path / "absent", 0)
    assert finding.level == "optional"
    (finding,) = hardware.numa(tmp_path / "absent")
    assert finding.level == "ok"


def test_several_numa_nodes_need_numactl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, cores in ((0, "0-7"), (1, "8-15"), (10, "")):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(f"{cores}\n")
    (tmp_path / "node2").mkdir()  # a node without the file
    (tmp_path / "online").touch()
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    (finding,) = hardware.numa(tmp_path)
    assert finding.level == "optional"
    assert "4 nodes (0: cores 0-7, 1: cores 8-15, 2: cores unknown, 10: cores none)" in finding.detail
    assert "--bind_cores_to_rank" in finding.remedy


def test_a_check_that_fails_or_hangs_is_a_finding() -> None:
    def failing() -> Iterator[Finding]:
        yield Finding("failing", "before", "ok", "")
        raise OSError("no such device")

    def hanging() -> Iterator[Finding]:
        time.sleep(30)
        yield Finding("hanging", "after", "ok", "")

    began = time.monotonic()
    before, failed, hung = ds4sci.doctor.run_checks((failing, hanging), seconds=0.5)
    assert time.monotonic() - began < 20
    assert before.level == "ok"
    assert (failed.level, failed.detail) == ("problem", "the check failed: OSError: no such device")
    assert hung.level == "problem"
    assert "no answer within" in hung.detail
