"""The launchers: `deepspeed … launch/train.py` and `ds4sci train`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ds4sci.config.run_file import RunConfig
from ds4sci.data.sequences.fasta_records import make_record
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.complexes import join_chains
from ds4sci.train import __main__ as program
from ds4sci.train import checkpoint, launch, watchdog
from ds4sci.train.distributed import free_port
from tests.support import rank_processes
from tests.support.fold_run import CONFIG, make_fold_run


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(rank_processes.ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def deepspeed(*arguments: str) -> list[str]:
    """`deepspeed --num_accelerators 2 launch/train.py …`."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"]
    return [*launcher, "--master_port", str(free_port()), str(rank_processes.ROOT / "launch/train.py"), *arguments]


def start_by_command(file: Path, folder: Path) -> subprocess.Popen:
    """Start ``ds4sci.train.launch.train`` in a process."""
    program = f"import sys; from ds4sci.train import launch; sys.exit(launch.train({str(file)!r}, ranks=2))"
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for_steps(run: Path, process: subprocess.Popen) -> None:
    lines = run / "metrics.jsonl"
    end = time.monotonic() + 90
    while not (lines.is_file() and '"train"' in lines.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def assert_nothing_left(folder: Path) -> None:
    """Assert that no process has ``folder`` as its working directory."""
    end = time.monotonic() + 15
    while True:
        left = [p for p in psutil.process_iter() if working_folder(p) == str(folder)]
        if not left:
            return
        assert time.monotonic() < end, [p.cmdline() for p in left]
        time.sleep(0.1)


def working_folder(process: psutil.Process) -> str | None:
    try:
        return process.cwd()
    except psutil.Error:
        return None


@pytest.mark.nightly
def test_a_stopped_rank_ends_the_launcher_and_the_run_resumes(tmp_path, run_file) -> None:
    file = run_file(evaluate_every=0, hang_seconds=5.0)
    fault = 'faults=[{rank=1, step=8, phase="step", kind="stop"}]'
    command = deepspeed("--config", str(file), "task.name=tests.support.faulty_task", fault)
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not (tmp_path / "fault_0").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    stopped = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert time.monotonic() - stopped < 60
    assert process.returncode in (watchdog.HANG_EXIT_CODE, 1), "that of the rank whose end the launcher sees first"
    assert output.count("error: rank 0: no progress for 5 s in step 8 (step); rank 1 (process") == 1
    assert "the process is stopped (SIGSTOP, or a debugger)" in output
    assert "ds4sci train --resume runs/run" in output
    assert "Traceback" not in output
    assert_nothing_left(tmp_path)
    assert checkpoint.checkpoint_steps(tmp_path / "runs/run") == [5]
    rank_processes.run(2, ["--resume", "runs/run"], tmp_path)
    assert checkpoint.checkpoint_steps(tmp_path / "runs/run")[-1] == 12


def test_ctrl_c_saves_and_exits_with_0(tmp_path, run_file) -> None:
    file = run_file(steps=2000, data="step_seconds = 0.02", evaluate_every=0, save_every=0)
    process = start_by_command(file, tmp_path)
    wait_for_steps(tmp_path / "runs/run", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Stopping after this step" in output
    assert "the run is saved. Resume it with: ds4sci train --resume runs/run" in output
    assert "INFO" not in output
    assert "Warning" not in output
    (step,) = checkpoint.checkpoint_steps(tmp_path / "runs/run")
    assert checkpoint.find_corruption(checkpoint.checkpoint_folder(tmp_path / "runs/run", step)) is None
    assert_nothing_left(tmp_path)


STAND_IN = """
import signal, subprocess, sys, time
if sys.argv[1] == "launcher":
    sys.exit(subprocess.call([sys.executable, "-S", sys.argv[0], "ds4sci.train", sys.argv[2]]))
def stop(*_):
    print("stopped in order")
    sys.exit(int(sys.argv[2]))
signal.signal(signal.SIGTERM, stop)
open(sys.argv[0] + sys.argv[2], "w").close()
time.sleep(300)
"""
"""A launcher that starts one rank, and the rank, which exits with a given code after SIGTERM."""


def test_a_signal_reaches_the_ranks_of_all_launchers(tmp_path) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    launches = [
        launch.Launch(
            [sys.executable, "-S", str(script), "launcher", str(code)], dict(os.environ), tmp_path / f"{code}.log"
        )
        for code in (0, 7)
    ]

    def interrupt() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not all((tmp_path / f"stand_in.py{code}").exists() for code in (0, 7)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert launch.run_launchers(launches) == [0, 7]
    thread.join()
    assert [(tmp_path / f"{code}.log").read_text() for code in (0, 7)] == ["stopped in order\n"] * 2


@pytest.mark.nightly
@pytest.mark.parametrize("how", ["ctrl-c", "TERM to deepspeed", "TERM to its launcher"])
def test_signals_to_deepspeeds_own_launcher(how, tmp_path, run_file) -> None:
    """The ranks save before they exit; the exit code is that of DeepSpeed's launcher."""
    file = run_file(steps=2000, data="step_seconds = 0.02", evaluate_every=0, save_every=0)
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen(
        deepspeed("--config", str(file)), cwd=tmp_path, env=environment(), stdout=log, stderr=log, process_group=0
    )
    wait_for_steps(tmp_path / "runs/run", process)
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    elif how == "TERM to deepspeed":
        process.terminate()
    else:
        psutil.Process(process.pid).children()[0].terminate()
    process.wait(timeout=60)
    assert_nothing_left(tmp_path)
    log.seek(0)
    output = log.read()
    assert "the run is saved. Resume it with: ds4sci train --resume runs/run" in output
    (step,) = checkpoint.checkpoint_steps(tmp_path / "runs/run")
    assert checkpoint.find_corruption(checkpoint.checkpoint_folder(tmp_path / "runs/run", step)) is None


def test_configuration_errors_are_found_before_any_process_starts(run_file, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(launch, "run_launcher", lambda *a: pytest.fail("started"))
    with pytest.raises(ValueError, match=r"did you mean train\.evaluate_every"):
        launch.train(run_file(), ["train.evaluate_evry=3"])
    with pytest.raises(ValueError, match="not a run folder"):
        launch.train(None, resume=tmp_path / "nowhere")
    step = tmp_path / "runs/x/checkpoints/step_000002"
    step.mkdir(parents=True)
    (step / "manifest.json").touch()
    with pytest.raises(ValueError, match=r"step_000002: a checkpoint, not a run folder; .* such as .*/runs/x$"):
        launch.train(None, resume=step)
    assert [path.name for path in step.iterdir()] == ["manifest.json"]
    file = run_file(name="old", output=str(tmp_path))
    (tmp_path / "old").mkdir()
    RunConfig.load(file).save(tmp_path / "old")
    (tmp_path / "old" / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="this run exists already, with other settings: seed: 3 there, 5 here"):
        launch.train(file, ["seed=5"])


def test_restarts_are_torchelastics(monkeypatch, run_file) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(launch, "run_launcher", lambda command, *a, **k: started.append(command) or 0)
    assert launch.train(run_file(name="x"), ["train.steps=5"], ranks=2, restarts=4) == 0
    file = run_file(name="x")
    file.write_text(file.read_text().replace('name = "x"\n', ""))
    assert launch.train(file, ranks=2, restarts=4) == 0
    named, unnamed = started
    assert named[1:3] == ["-m", "ds4sci.train.agent"]
    assert named[named.index("--max-restarts") + 1] == "4"
    assert named[named.index("--nproc-per-node") + 1] == "2"
    assert named[-1] == "train.steps=5"
    assert unnamed[-1].startswith("train.name=toy-"), "all starts share a folder"


def test_the_command_is_an_argument_list_and_cores_are_divided(monkeypatch) -> None:
    command = launch.launcher_command(3, ["--config", "a b.toml", "train.name=x;y"])
    assert command[:5] == [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "3"]
    assert command[-5:] == ["--module", "ds4sci.train", "--config", "a b.toml", "train.name=x;y"]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "usable_cores", lambda: 8)
    assert launch.rank_environment(3)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launch.rank_environment(3)["OMP_NUM_THREADS"] == "5"


def refused_data(folder: Path) -> dict[str, list[str]]:
    """Message → overrides of ``tiny_cpu.toml`` whose data files a model of single chains cannot use."""
    complexes, damaged = folder / "complexes.npz", folder / "damaged.npz"
    parts = [make_record("a", "AGW"), make_record("b", "CK")]
    ChainSet.write(complexes, [join_chains("ab", parts)])
    damaged.write_bytes(b"no zip file")
    return {
        f"data.train: {folder / 'absent.npz'}: chain set not found": [f"data.train={folder / 'absent.npz'}"],
        f"data.valid: {folder / 'absent.npz'}: chain set not found": [f"data.valid={folder / 'absent.npz'}"],
        f"data.valid = '{complexes}': a complex of several chains": [f"data.valid={complexes}"],
        f"data.train = '{complexes}': a complex of several chains": [f"data.train={complexes}"],
        f"{damaged}: not a chain set": [f"data.valid={damaged}"],
        f"data.distillation.chains: {folder / 'empty'}: no .npz file": [f"data.distillation.chains={folder / 'empty'}"],
    }


def test_data_is_checked_before_a_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run_launcher", lambda *arguments, **options: pytest.fail("a launcher was started"))
    (tmp_path / "empty").mkdir()
    for message, overrides in refused_data(tmp_path).items():
        with pytest.raises(ValueError, match=re.escape(message)):
            launch.train(CONFIG, overrides)
        with pytest.raises(ValueError, match=re.escape(message)):
            program.load(program.parse(["--config", str(CONFIG), *overrides]))
    assert not (tmp_path / "runs").exists()
    multimer = [f"data.valid={tmp_path / 'complexes.npz'}", 'model.kind="multimer"']
    program.load(program.parse(["--config", str(CONFIG), *multimer]))
    run = make_fold_run(tmp_path)
    (tmp_path / "valid.npz").unlink()
    with pytest.raises(ValueError, match=r"data.valid: .*valid.npz: chain set not found"):
        launch.train(None, resume=run)


def test_the_program_reports_data_before_deepspeed(tmp_path: Path) -> None:
    command = [sys.executable, str(rank_processes.ROOT / "launch/train.py"), "--config", str(CONFIG)]
    done = subprocess.run(
        [*command, f"data.valid={tmp_path / 'absent.npz'}"], cwd=tmp_path, env=environment(), text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: data.valid: {tmp_path / 'absent.npz'}: chain set not found")
    assert done.stderr.count("\n") == 1
