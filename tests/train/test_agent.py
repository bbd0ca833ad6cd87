"""The agent that restarts ranks: what it restarts, how often, and its exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.agent.server.api import RunResult, WorkerState

from ds4sci.train import agent as agents
from ds4sci.train import checkpoint
from tests.support import rank_processes


def start(file: Path, *overrides: str, restarts: int) -> subprocess.Popen:
    """``ds4sci train --restarts``, in the folder of the run file."""
    command = [sys.executable, "-m", "ds4sci", "train", str(file), "--ranks", "2", "--restarts", str(restarts)]
    variables = os.environ | {"PYTHONPATH": str(rank_processes.ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        [*command, "task.name=tests.support.faulty_task", *overrides],
        cwd=file.parent, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture
def counted(tmp_path, capsys):
    """Function that reports a failure with an exit code to an agent with three restarts, and returns what remains."""
    one = agents.Agent.__new__(agents.Agent)
    one.run_folder, one.exit_code, one._newest = tmp_path, 1, -1
    one._remaining_restarts = 3
    one._worker_group = SimpleNamespace(spec=SimpleNamespace(max_restarts=3))

    def fail(code: int = 1, step: int | None = None) -> tuple[int, str]:
        if step is not None:
            checkpoint.checkpoint_folder(tmp_path, step).mkdir(parents=True)
        one._decide(RunResult(WorkerState.FAILED, {}, {1: SimpleNamespace(exitcode=code)}))
        remaining, one._remaining_restarts = one._remaining_restarts, max(0, one._remaining_restarts - 1)  # as torch
        return remaining, capsys.readouterr().err

    fail.agent = one
    return fail


def test_restarts_are_counted_since_the_newest_checkpoint(counted) -> None:
    assert counted(-9) == (3, "rank 1 was killed by SIGKILL; restarting from the beginning (restart 1 of 3 without a "
                              "new checkpoint)\n")  # fmt: skip
    assert counted()[0] == 2
    remaining, text = counted(75, step=5)
    assert remaining == 3
    assert "rank 1 ended with exit code 75; restarting from the checkpoint of step 5 (restart 1 of 3" in text
    assert [counted()[0], counted()[0]] == [2, 1]
    remaining, text = counted()
    assert remaining == 0
    assert "3 restarts made no new checkpoint, giving up" in text
    assert counted.agent.exit_code == 1


@pytest.mark.parametrize("code", [2, 3])
def test_errors_that_another_start_would_repeat_are_final(counted, code) -> None:
    assert counted(code, step=5) == (0, "")
    assert counted.agent.exit_code == code


def test_settings_are_checked_before_ranks_start(run_file, capsys, monkeypatch) -> None:
    monkeypatch.setattr(agents.torchrun, "run", lambda options: pytest.fail("started"))
    flags = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "3", "-m", "ds4sci.train"]
    assert agents.main([*flags, "--config", str(run_file()), "train.stepz=3"]) == 2
    assert "did you mean train.steps" in capsys.readouterr().err
    assert agents.main([*flags, "--resume", "nowhere"]) == 2
    assert "not a run folder" in capsys.readouterr().err


@pytest.mark.nightly
def test_torchrun_restarts_only_what_it_can(run_file, tmp_path) -> None:
    elastic = {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    arguments = ["--config", str(run_file())]
    ended = rank_processes.run(1, arguments, tmp_path, environment=elastic, code=2)
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in ended.output
    elastic["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    file = tmp_path / "toy.toml"
    file.write_text(file.read_text().replace('name = "run"\n', ""))
    ended = rank_processes.run(1, arguments, tmp_path, environment=elastic, code=2)
    assert "toy.toml: train.name is missing; a restart finds the run folder by its name" in ended.output


@pytest.mark.nightly
def test_a_run_goes_on_after_a_kill_and_stops_in_order(tmp_path, run_file) -> None:
    file = run_file(steps=4000, evaluate_every=0, log_every=1, data="step_seconds = 0.02")
    run = tmp_path / "runs/run"
    process = start(file, 'faults=[{rank=0, step=12, phase="step", kind="kill"}]', restarts=2)
    try:
        end = time.monotonic() + 240
        while not (
            (tmp_path / "fault_0").exists()
            and json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] > 16
        ):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "rank 0 was killed by SIGKILL" in output
    assert "restarting from the checkpoint of step 10 (restart 1 of 2 without a new checkpoint)" in output
    assert re.search(r"Resuming tests.support.faulty_task .* step 10 of 4000: 2 × cpu", output)
    assert "the run is saved" in output
    assert checkpoint.checkpoint_steps(run)[-1] > 16
