"""Launch scripts: the environment is created only when necessary; the Slurm script starts, resumes and requeues."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
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


class Cluster:
    """A fake Slurm whose ``srun`` records its arguments and writes a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / "bin").mkdir()
        self.tool("scontrol", 'echo "scontrol $*" >> "$LOG"; [ "$1" = show ] && echo node1 && echo node2; true')
        self.tool("srun", 'echo "srun $*" >> "$LOG"; eval "$TRAINING"')
        (folder / "bin" / "python").symlink_to(sys.executable)

    def tool(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def reach(self, step: int, steps: int = 100) -> str:
        """Return a shell command that writes a run at ``step`` of ``steps``."""
        source = self.folder / f"at{step}"
        checkpoint = source / "checkpoints" / f"step_{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(json.dumps({"step": step}), encoding="utf-8")
        (source / "checkpoints" / "latest").write_text(checkpoint.name + "\n", encoding="utf-8")
        (source / "config.json").write_text(json.dumps({"train": {"steps": steps}}), encoding="utf-8")
        return f"mkdir -p runs/fold; cp -r {source}/. runs/fold/"

    def submit(self, training: str) -> tuple[int, str]:
        """Run the batch script; return its exit code and the recorded calls."""
        self.log.write_text("", encoding="utf-8")
        variables = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "LOG": str(self.log),
            "TRAINING": training,
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_NAME": "fold",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_GPUS_ON_NODE": "8",
        }
        command = ["bash", str(LAUNCH / "slurm.sbatch"), "configs/fold/small.toml", "train.steps=100"]
        done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)
        return done.returncode, self.log.read_text(encoding="utf-8")


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_slurm_script_starts_and_resumes(cluster: Cluster) -> None:
    code, calls = cluster.submit(cluster.reach(40) + "; exit 143")
    assert code == 0
    assert "--nnodes=2 --nproc-per-node=8" in calls
    assert "--rdzv-endpoint=node1:29500" in calls
    assert "launch/train.py --config configs/fold/small.toml train.name=fold train.steps=100" in calls
    assert "scontrol requeue 7" in calls
    code, calls = cluster.submit(cluster.reach(100))
    assert code == 0
    assert "launch/train.py --resume runs/fold train.steps=100" in calls
    assert "requeue" not in calls


def test_slurm_script_does_not_requeue_without_progress(cluster: Cluster) -> None:
    code, calls = cluster.submit("exit 2")
    assert (code, "requeue" in calls) == (2, False)
    cluster.submit(cluster.reach(40))
    code, calls = cluster.submit("exit 1")
    assert (code, "requeue" in calls) == (1, False)


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
