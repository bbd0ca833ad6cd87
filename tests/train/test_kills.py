"""Twenty random faults in one run on two ranks: the final weights are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ds4sci.train import checkpoint
from tests.support import rank_processes
from tests.support.run_files import digest, losses

HANG_SECONDS = 10.0
STEPS, SAVE_EVERY, EVALUATE_EVERY = 132, 3, 4
KINDS = ("stop",) * 4 + ("kill",) * 9 + ("raise",) * 7
PHASES = ("step", "save", "evaluate")


def slowness() -> float:
    """How much slower this machine is now than a quiet one, which the limits below are for: from 1 to 5."""
    return min(5.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def random_faults(seed: int) -> list[dict]:
    """One fault after every six steps, with a checkpoint in between."""
    rng = random.Random(seed)
    kinds = list(KINDS)
    rng.shuffle(kinds)
    faults = []
    for number, kind in enumerate(kinds):
        phase = PHASES[number % 3]
        first = 6 * number + 4
        every = {"step": 1, "save": SAVE_EVERY, "evaluate": EVALUATE_EVERY}[phase]
        steps = [step for step in range(first, first + 6) if step % every == 0]
        delay = 0.0 if kind == "raise" else rng.choice([0.0, 0.002, 0.02])
        faults.append(
            {"rank": rng.randrange(2), "step": rng.choice(steps), "phase": phase, "kind": kind, "delay": delay}
        )
    return faults


def toml(value: object) -> str:
    """Return a value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "failures.jsonl").read_text().splitlines()]


def command(file: Path, *overrides: str, restarts: int) -> subprocess.Popen:
    arguments = ["train", str(file), "--ranks", "2", "--restarts", str(restarts), *overrides]
    variables = os.environ | {"PYTHONPATH": str(rank_processes.ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with (file.parent / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ds4sci", *arguments], cwd=file.parent, env=variables, stdout=log, stderr=log
        )


def stop(process: subprocess.Popen) -> None:
    """Kill a command with all its children."""
    if process.poll() is None:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        process.wait()


@pytest.mark.nightly
def test_twenty_random_faults_change_nothing(tmp_path, run_file) -> None:
    faults = random_faults(seed=17)
    file = run_file(
        steps=STEPS, save_every=SAVE_EVERY, evaluate_every=EVALUATE_EVERY, log_every=1, keep_last=1000,
        hang_seconds=HANG_SECONDS, data="step_seconds = 0.01", ds={"zero_optimization": {"stage": 1}},
    )  # fmt: skip
    task = "task.name=tests.support.faulty_task"
    rank_processes.run(2, ["--config", str(file), task, "train.name=whole"], tmp_path)
    process = command(file, task, f"faults={toml(faults)}", restarts=3)
    run, seen = tmp_path / "runs/run", set()
    slowest, lost = 1.0, []
    try:
        end = time.monotonic() + 1800
        while process.poll() is None:
            assert time.monotonic() < end, (tmp_path / "log").read_text()[-4000:]
            slowest = max(slowest, slowness())
            steps = set(checkpoint.checkpoint_steps(run)) if (run / "checkpoints").is_dir() else set()
            lost += sorted(seen - steps)
            seen |= steps
            time.sleep(0.02)
    finally:
        stop(process)
    text = (tmp_path / "log").read_text()
    assert process.returncode == 0, text[-4000:]
    assert text.count("restarting from") == 20
    assert not lost, "a complete checkpoint disappeared"
    assert checkpoint.checkpoint_steps(run) == checkpoint.checkpoint_steps(tmp_path / "runs/whole")
    for step in checkpoint.checkpoint_steps(run):
        assert checkpoint.find_corruption(checkpoint.checkpoint_folder(run, step)) is None
        one, two = (checkpoint.checkpoint_folder(tmp_path / f"runs/{n}", step) for n in ("run", "whole"))
        assert digest(one / "model.safetensors") == digest(two / "model.safetensors"), step
    assert losses(run) == losses(tmp_path / "runs/whole")
    lines = records(run)
    for number, fault in enumerate(faults):
        kind = {"kill": "killed", "raise": "exception", "stop": "stopped"}[fault["kind"]]
        pid = int((tmp_path / f"fault_{number}").read_text().split()[0])
        own = [line for line in lines if (line["rank"], line["pid"], line["kind"]) == (fault["rank"], pid, kind)]
        assert len(own) == 1, (fault, own)
        if fault["delay"] == 0:
            assert (own[0]["step"], own[0]["phase"]) == (fault["step"], fault["phase"])
        attempt = [line for line in lines if line["attempt"] == own[0]["attempt"]]
        assert any("loop.py" in stack for line in attempt for stack in line["stacks"].values()), fault
        if kind != "killed":
            assert own[0]["stacks"], "a killed process has no stack; that of the rank that waited for it is recorded"
    moments = [float((tmp_path / f"fault_{n}").read_text().split()[1]) for n in range(len(faults))]
    trained = [float(mark.read_text()) for mark in tmp_path.glob("trained_*")]
    back = [min(time for time in trained if time > moment) - moment for moment in moments]
    limits = {"kill": 25.0, "raise": 25.0, "stop": HANG_SECONDS + 50.0}
    worst = {kind: max(back[n] for n, fault in enumerate(faults) if fault["kind"] == kind) for kind in limits}
    print(f"training again after, at most: {worst} (limits × {slowest:.1f})")
    for kind, limit in limits.items():
        assert worst[kind] <= limit * slowest, worst


@pytest.mark.nightly
def test_a_fault_at_a_fixed_step_ends_after_the_restarts(tmp_path, run_file) -> None:
    file = run_file(steps=20)
    process = command(
        file, "task.name=tests.support.faulty_task",
        'faults=[{rank=1, step=7, phase="step", kind="kill", always=true}]', restarts=2,
    )  # fmt: skip
    try:
        assert process.wait(600) not in (0, None)
    finally:
        stop(process)
    text = (tmp_path / "log").read_text()
    assert text.count("restarting from the checkpoint of step 5") == 2
    assert "2 restarts made no new checkpoint, giving up" in text
    assert [line["step"] for line in records(tmp_path / "runs/run") if line["kind"] == "killed"] == [7, 7, 7]
    assert checkpoint.checkpoint_steps(tmp_path / "runs/run")[-1] == 5
