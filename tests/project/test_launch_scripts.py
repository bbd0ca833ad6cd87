"""Launch scripts: the environment is created only when necessary, scripts parse, the test script forwards arguments."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import threading
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``launch/environment.py`` of a small tree in ``tmp_path``, with a pip that only records its arguments."""
    spec = importlib.util.spec_from_file_location("environment_under_test", LAUNCH / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "setup.py").write_text("# requirements\n", encoding="utf-8")
    (tmp_path / "constraints-cpu.txt").write_text("torch==2.13.0\n", encoding="utf-8")
    for name, value in {
        "ROOT": tmp_path,
        "VENV": tmp_path / ".venv",
        "STAMP": tmp_path / ".venv" / "stamp.json",
        "CONSTRAINTS": tmp_path / "constraints-cpu.txt",
        "MAKE_VENV": [*module.MAKE_VENV, "--without-pip"],
    }.items():
        monkeypatch.setattr(module, name, value)
    pip_calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(module, "pip", lambda *arguments: pip_calls.append(arguments))
    monkeypatch.setattr(module, "kind_of_machine", lambda: "cpu")
    monkeypatch.setattr(module, "is_reachable", lambda index: False)
    module.pip_calls = pip_calls  # type: ignore[attr-defined]
    return module


def test_environment_is_created_once(environment: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    environment.main()
    assert len(environment.pip_calls) == 1
    assert (environment.VENV / "bin" / "python").exists()
    assert "is not reachable" in capsys.readouterr().out
    environment.main()
    assert len(environment.pip_calls) == 1
    assert capsys.readouterr().out == "", "an up-to-date environment prints nothing"


def test_environment_is_updated_with_its_requirements(environment: ModuleType) -> None:
    environment.main()
    mark = environment.VENV / "kept"
    mark.touch()
    (environment.ROOT / "setup.py").write_text("# other requirements\n", encoding="utf-8")
    environment.main()
    assert len(environment.pip_calls) == 2
    assert mark.exists(), "new requirements alone keep the installed packages"
    environment.kind_of_machine = lambda: "cuda"
    environment.main()
    assert not mark.exists(), "another kind of machine gets a new environment"
    assert environment.pip_calls[-1] == ("--editable", ".[dev]"), "a CUDA machine installs torch from PyPI"


def test_interrupted_installation_is_repeated(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(environment, "pip", interrupted)
        with pytest.raises(KeyboardInterrupt):
            environment.main()
    environment.main()
    assert len(environment.pip_calls) == 1


def test_cpu_index_is_added_if_it_is_reachable(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "is_reachable", lambda index: True)
    environment.main()
    (arguments,) = environment.pip_calls
    assert arguments[arguments.index("--extra-index-url") + 1] == "https://download.pytorch.org/whl/cpu"
    assert "--constraint" in arguments


def test_a_second_caller_waits(environment: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    locked, release = threading.Event(), threading.Event()

    def first() -> None:
        with environment.locked():
            locked.set()
            release.wait(20)

    holder = threading.Thread(target=first)
    holder.start()
    assert locked.wait(20)
    second = threading.Thread(target=environment.main)
    second.start()
    second.join(1)
    assert second.is_alive(), "it must wait for the lock"
    assert environment.pip_calls == []
    release.set()
    second.join(60)
    holder.join(20)
    assert len(environment.pip_calls) == 1
    assert "waiting" in capsys.readouterr().out


def test_missing_venv_module_names_the_package(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else real(name))
    with pytest.raises(SystemExit, match=r"apt-get install -y python3(\.\d+)?-venv"):
        environment.main()


def test_missing_python_is_reported(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    script = f"PYTHON={old} source {LAUNCH / 'env.sh'}; echo not reached"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Python >= 3.11" in done.stderr
    assert "not reached" not in done.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")))
def test_scripts_parse(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(LAUNCH / script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_deepspeed_reads_the_hostfile() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    assert dict(fetch_hostfile(str(LAUNCH / "hostfile.example"))) == {"node1": 8, "node2": 8}


def test_test_script_forwards_arguments(tmp_path: Path) -> None:
    shutil.copy(LAUNCH / "test.sh", tmp_path)
    (tmp_path / "env.sh").write_text('ds4sci_root="$PWD"; python() { :; }; exec() { echo "$@"; }\n', encoding="utf-8")
    done = subprocess.run(
        ["bash", str(tmp_path / "test.sh"), "tests/test_x.py", "-k", "a b"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "pytest -m not gpu" in done.stdout
    assert done.stdout.strip().endswith("tests/test_x.py -k a b")
