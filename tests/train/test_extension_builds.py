"""Builds of DeepSpeed's extensions: selection, locking, stale builds, and missing compilers."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from torch.utils.file_baton import FileBaton

from ds4sci.train import extension_builds
from tests.support import rank_processes
from tests.support.compilers import substituting

ADAM = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
TORCH_ADAM = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}}
OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (TORCH_ADAM, set()),
        (ADAM, {"fused_adam"}),
        (ADAM | OFFLOAD, {"cpu_adam"}),
        (TORCH_ADAM | OFFLOAD, set()),
        ({"optimizer": {"type": "Lion"}} | OFFLOAD, {"cpu_lion"}),
        (TORCH_ADAM | {"tensor_parallel": {"autotp_size": 2}}, {extension_builds.SHM}),
    ],
)
def test_only_required_extensions_are_built(config: dict, names: set[str]) -> None:
    wanted = extension_builds.required_extensions(config, accelerator="cpu")
    assert set(wanted) == names
    assert all(wanted.values())


def test_cache_folder_and_its_environment_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/some/where")
    assert extension_builds.cache_folder() == Path("/some/where")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = extension_builds.cache_folder()
    assert folder.is_relative_to(tmp_path / "ds4sci")
    assert "deepspeed0." in folder.name
    assert not folder.exists()  # asking makes nothing


def _torch_builds(folder: Path, seconds: float) -> None:
    """Imitate torch.utils.cpp_extension: take the lock file, or wait for it forever."""
    folder.mkdir(parents=True, exist_ok=True)
    baton = FileBaton(str(folder / "lock"))
    if baton.try_acquire():
        try:
            subprocess.run(["sleep", str(seconds)], cwd=folder, check=True)  # the compiler
            (folder / "thing.so").touch()
        finally:
            baton.release()
    else:
        baton.wait()


def _build(folder: Path, seconds: float) -> None:
    extension_builds.build(folder, "thing", lambda: _torch_builds(folder / "thing", seconds), reason="a test")


def test_a_killed_build_does_not_hang_the_next(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    first = context.Process(target=_build, args=(tmp_path, 600))
    first.start()
    end = time.monotonic() + 20
    while not (compilers := psutil.Process(first.pid).children()):
        assert time.monotonic() < end
        time.sleep(0.01)
    (tmp_path / "thing/half.o").touch()
    first.kill()
    first.join()
    assert (tmp_path / "thing/lock").exists()  # what torch would wait for without end
    assert compilers[0].is_running()  # and what would write into the next build's files
    second = context.Process(target=_build, args=(tmp_path, 0))
    second.start()
    second.join(20)
    alive = second.is_alive()
    second.kill()
    assert not alive, "the second build waits for the dead one"
    assert second.exitcode == 0
    assert (tmp_path / "thing/thing.so").exists()
    assert not (tmp_path / "thing/half.o").exists()
    assert not compilers[0].is_running()


def test_waits_for_a_build_by_another_program(tmp_path: Path) -> None:
    """A program without the ds4sci lock, such as a plain DeepSpeed script with the same TORCH_EXTENSIONS_DIR."""
    (tmp_path / "thing").mkdir()
    other = multiprocessing.get_context("fork").Process(target=_torch_builds, args=(tmp_path / "thing", 1.5))
    other.start()
    while not (tmp_path / "thing/lock").exists():
        time.sleep(0.01)
    extension_builds.build(tmp_path, "thing", lambda: None, reason="a test", log=lambda text: None)
    assert (tmp_path / "thing/thing.so").exists()
    other.join()
    assert other.exitcode == 0


def test_builders_wait_for_each_other_and_report_it(tmp_path: Path) -> None:
    said: list[str] = []
    first = multiprocessing.get_context("fork").Process(target=_build, args=(tmp_path, 1.0))
    first.start()
    while not (tmp_path / "thing/lock").exists():
        time.sleep(0.01)
    began = time.monotonic()
    extension_builds.build(tmp_path, "thing", lambda: None, reason="a test", log=said.append)
    assert time.monotonic() - began > 0.3
    first.join()
    assert said == ["Waiting for another process to build DeepSpeed's thing …"]


def test_a_build_reports_name_reason_and_time(tmp_path: Path) -> None:
    said: list[str] = []
    extension_builds.build(tmp_path, "thing", lambda: None, reason="the JSON asks for it", log=said.append)
    assert "Building DeepSpeed's thing once" in said[0]
    assert "the JSON asks for it" in said[0]
    assert said[1].startswith("Built thing in ")


def test_a_failed_build_names_the_workaround(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("error: no such header")

    with pytest.raises(
        extension_builds.BuildError, match=r'cpu_adam failed to build.*no such header.*"torch_adam": true'
    ):
        extension_builds.build(tmp_path, "cpu_adam", fail, reason="offload", log=lambda text: None)


def test_without_a_compiler_training_works_and_needs_no_build(tmp_path, run_file, monkeypatch) -> None:
    """Without a compiler on PATH and with an empty extension folder the run succeeds without a build."""
    bare = {"PATH": "/nonexistent", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler" in (extension_builds.why_no_build() or "")
    rank_processes.run(2, ["--config", str(run_file(steps=3))], tmp_path, environment=bare)
    assert not (tmp_path / "extensions").exists()


def test_without_a_compiler_a_json_that_requires_a_build_is_refused(tmp_path, run_file) -> None:
    bare = {"PATH": "/nonexistent", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "CXX": ""}
    ended = rank_processes.run(2, ["--config", str(run_file(ds=ADAM))], tmp_path, environment=bare, code=2)
    assert ended.output.count("error:") == 1
    assert "fused_adam is required" in ended.output
    assert "sudo apt-get install g++" in ended.output
    assert '"torch_adam": true' in ended.output


NO_ADAM = """
#include <pybind11/pybind11.h>
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    for (const char* name : {"create_adam", "adam_update", "adam_rollback", "destroy_adam"})
        m.def(name, [](pybind11::args, pybind11::kwargs) { return 0; });
}
"""
"""The interface of cpu_adam without torch's headers, most of the time of its build. Its steps change nothing."""


@pytest.mark.nightly
@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.skipif(
    extension_builds.why_no_build() is not None, reason=f"cannot build here: {extension_builds.why_no_build()}"
)
def test_deepspeed_cpu_adam_is_built_once_also_after_a_kill(tmp_path, run_file, complete: bool) -> None:
    """Ranks are killed during the build of cpu_adam and started again. ``complete``: with DeepSpeed's source."""
    folder = tmp_path / "extensions"
    environment = {"TORCH_EXTENSIONS_DIR": str(folder)}
    if not complete:
        environment["CXX"] = str(substituting(tmp_path / "compiler", "cpu_adam.cpp", NO_ADAM))
    file = run_file(steps=3, ds=ADAM | {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}})
    ranks = rank_processes.RankProcesses(2, ["--config", str(file)], tmp_path, environment)
    ranks.wait_for(lambda: (folder / "cpu_adam/lock").exists())
    for process in ranks.processes:
        process.kill()
    ranks.join()
    assert (folder / "cpu_adam/lock").exists()
    ended = rank_processes.RankProcesses(2, ["--config", str(file)], tmp_path, environment).join(600)
    assert ended.codes == [0, 0], ended.output
    assert ended.output.count("Building DeepSpeed's cpu_adam once") == 1
    assert ended.output.count("Built cpu_adam in") == 1
    assert not (folder / "cpu_adam/lock").exists()
    assert list((folder / "cpu_adam").glob("*.so"))
