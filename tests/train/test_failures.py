"""Failures of a run: full disk, corrupt checkpoint, signals, exceptions, and another number of ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from ds4sci.config.run_file import RunConfig
from ds4sci.train import checkpoint, run_folder, signals
from tests.support import rank_processes
from tests.support.run_files import digest, metrics


def steps(run: Path) -> list[int]:
    return checkpoint.checkpoint_steps(run)


def test_a_full_disk_during_a_checkpoint(tmp_path, run_file) -> None:
    """From step 7 rank 1 cannot write its part: the run ends with one error, and the checkpoint of step 5 remains."""
    file = run_file(data="full_disk_at = 7", evaluate_every=0, ds={"zero_optimization": {"stage": 1}})
    ended = rank_processes.run(2, ["--config", str(file)], tmp_path, code=1)
    run = tmp_path / "runs/run"
    assert ended.output.count("error:") == 1
    assert "checkpoints/step_000010 could not be written: rank 1" in ended.output
    assert "File too large" in ended.output
    assert "MB free" in ended.output
    assert "Earlier checkpoints are unchanged" in ended.output
    assert steps(run) == [5]
    assert checkpoint.find_corruption(checkpoint.checkpoint_folder(run, 5)) is None
    assert not list((run / "checkpoints").glob(".*"))
    rank_processes.run(2, ["--resume", "runs/run", "data.full_disk_at=-1"], tmp_path)
    assert steps(run)[-1] == 12


@pytest.mark.parametrize("corruption", ["truncate", "flip", "remove", "no manifest"])
def test_a_corrupt_checkpoint_is_skipped_for_the_previous_one(corruption, tmp_path, run_file) -> None:
    file = run_file(steps=10, evaluate_every=0, ds={"zero_optimization": {"stage": 1}})
    rank_processes.run(1, ["--config", str(file)], tmp_path)
    run = tmp_path / "runs/run"
    assert steps(run) == [5, 10]
    (run / "checkpoints/.step_000011.partial").mkdir()  # as left by a process killed while saving
    expected = digest(run / "checkpoints/step_000010/model.safetensors")
    victim = run / "checkpoints/step_000010/rank_0000.safetensors"
    if corruption == "truncate":
        victim.write_bytes(victim.read_bytes()[:-10])
    elif corruption == "flip":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif corruption == "remove":
        victim.unlink()
    else:
        (run / "checkpoints/step_000010/manifest.json").unlink()
    ended = rank_processes.run(1, ["--resume", "runs/run"], tmp_path)
    assert "WARNING: runs/run/checkpoints/step_000010 is corrupt" in ended.output
    assert "step 5 of 10" in ended.output
    assert digest(run / "checkpoints/step_000010/model.safetensors") == expected
    assert checkpoint.find_corruption(run / "checkpoints/step_000010") is None
    assert not (run / "checkpoints/.step_000011.partial").exists()


def test_no_whole_checkpoint_is_an_error_on_all_ranks(tmp_path, run_file) -> None:
    file = run_file(steps=2)
    rank_processes.run(2, ["--config", str(file)], tmp_path)
    shutil.rmtree(tmp_path / "runs/run/checkpoints")
    ended = rank_processes.run(2, ["--resume", "runs/run"], tmp_path, code=2)
    assert ended.output.count("no intact checkpoint in runs/run/checkpoints") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(number, tmp_path, run_file) -> None:
    file = run_file(steps=1000, data="step_seconds = 0.02", evaluate_every=0, save_every=0)
    ranks = rank_processes.RankProcesses(2, ["--config", str(file)], tmp_path)
    lines = tmp_path / "runs/run/metrics.jsonl"
    ranks.wait_for(lambda: lines.is_file() and '"train"' in lines.read_text())
    os.kill(ranks.processes[1].pid, number)
    ended = ranks.join()
    assert ended.codes == [0, 0], ended.output
    assert "the run is saved. Resume it with: ds4sci train --resume runs/run" in ended.output
    (stopped,) = steps(tmp_path / "runs/run")
    assert f"Stopped after step {stopped} " in ended.output
    assert 3 <= stopped < 1000
    rank_processes.run(2, ["--resume", "runs/run", f"train.steps={stopped + 2}"], tmp_path)
    assert steps(tmp_path / "runs/run")[-1] == stopped + 2


def test_a_signal_before_the_first_step_ends_a_rank_immediately(tmp_path, run_file) -> None:
    """Rank 0 waits for a second rank that does not start; there is nothing to save."""
    missing_rank = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    ranks = rank_processes.RankProcesses(1, ["--config", str(run_file())], tmp_path, missing_rank)
    port = int(ranks.environment["MASTER_PORT"])
    ranks.wait_for(lambda: any(c.laddr.port == port for c in psutil.Process(ranks.processes[0].pid).net_connections()))
    ranks.processes[0].terminate()
    assert ranks.join(10).codes == [-signal.SIGTERM]


def test_the_resumed_run_repeats_an_interrupted_evaluation(tmp_path, run_file) -> None:
    slow = "step_seconds = 0.3"
    file = run_file(steps=4, evaluate_every=2, save_every=0, log_every=1, data="")
    rank_processes.run(2, ["--config", str(file), "train.name=whole"], tmp_path)
    ranks = rank_processes.RankProcesses(2, ["--config", str(file), f"data.{slow.replace(' ', '')}"], tmp_path)
    lines = tmp_path / "runs/run/metrics.jsonl"
    ranks.wait_for(lambda: lines.is_file() and '"kind": "train", "step": 2' in lines.read_text())
    ranks.processes[0].terminate()
    ended = ranks.join()
    assert ended.codes == [0, 0], ended.output
    run = tmp_path / "runs/run"
    state = json.loads((checkpoint.checkpoint_folder(run, 2) / "state.json").read_text())
    assert (state["step"], state["evaluated_step"], state["best"]) == (2, 0, None)
    rank_processes.run(2, ["--resume", "runs/run", "data.step_seconds=0.0"], tmp_path)
    kinds = ("train", "eval")
    assert metrics(run, *kinds) == metrics(tmp_path / "runs/whole", *kinds)


def test_an_exception_on_one_rank_is_printed_once_with_its_reason(tmp_path, run_file) -> None:
    ended = rank_processes.run(2, ["--config", str(run_file(data="raise_at = 6"))], tmp_path, code=1)
    assert ended.output.count("error:") == 1
    assert "error: rank 1: RuntimeError: the toy broke on purpose" in ended.outputs[1]
    assert "toy_task.py" in ended.outputs[1]
    assert "the toy broke on purpose" in (tmp_path / "runs/run/error.txt").read_text()


def test_too_many_nonfinite_steps_stop_the_run_with_a_checkpoint(tmp_path, run_file) -> None:
    file = run_file(data="nan_at = [1, 3, 4, 6, 8]", max_nonfinite=2, save_every=0, evaluate_every=0)
    ended = rank_processes.run(2, ["--config", str(file)], tmp_path, code=3)
    assert ended.output.count("error:") == 1
    assert "3 steps had a non-finite loss or gradient, and train.max_nonfinite = 2" in ended.output
    run = tmp_path / "runs/run"
    assert steps(run) == [5]
    assert sorted(p.name for p in (run / "nonfinite").iterdir()) == [f"step_00000{s}.json" for s in (2, 4, 5)]


def test_another_batch_optimizer_or_schedule_is_refused(tmp_path, run_file) -> None:
    file = run_file(steps=2, ds={"zero_optimization": {"stage": 1}})
    rank_processes.run(1, ["--config", str(file)], tmp_path)
    config = json.loads((tmp_path / "ds.json").read_text())
    other = tmp_path / "other.json"

    def refusal(changes: dict) -> str:
        other.write_text(json.dumps(config | changes))
        arguments = ["--resume", "runs/run", "--deepspeed_config", str(other)]
        return rank_processes.run(1, arguments, tmp_path, code=2).output

    found = refusal({"train_batch_size": 8})
    assert f"{other}: train_batch_size is 8 (ranks × micro batch × accumulation = 1 × 2 × 4)" in found
    assert "step_000002 was written with 4" in found
    assert "Resume with train_batch_size = 4" in found
    sgd = {"type": "SGD", "params": {"lr": 1e-2}}
    found = refusal({"optimizer": sgd, "zero_allow_untested_optimizer": True})
    assert "step_000002 holds the state of AdamW, which SGD cannot continue; resume with AdamW" in found
    found = refusal({"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 9}}})
    assert "scheduler.type is WarmupDecayLR, but runs/run/checkpoints/step_000002 was written with WarmupLR" in found
    # the refused JSONs have not replaced that of the run; a JSON with a key that is no longer needed is accepted
    other.write_text(json.dumps(config | {"checkpoint": {"load_universal": True}}))
    rank_processes.run(1, ["--resume", "runs/run", "train.steps=3"], tmp_path)
    rank_processes.run(1, ["--resume", "runs/run", "--deepspeed_config", str(other), "train.steps=4"], tmp_path)
    assert steps(tmp_path / "runs/run")[-1] == 4


def test_an_optimizer_that_no_checkpoint_can_hold_is_refused_before_the_first_step(tmp_path, run_file) -> None:
    file = run_file(ds={"optimizer": {"type": "Adafactor", "params": {"lr": 1e-2}}})
    ended = rank_processes.run(1, ["--config", str(file)], tmp_path, code=2)
    assert "optimizer.type: the state of Adafactor cannot be divided among ranks" in ended.output
    assert "use one of Adam, AdamW" in ended.output


def test_a_run_named_again_goes_on_with_the_same_settings_only(tmp_path, run_file) -> None:
    file = run_file(steps=2, save_every=2)
    rank_processes.run(1, ["--config", str(file)], tmp_path)
    before = digest(tmp_path / "runs/run/checkpoints/step_000002/model.safetensors")
    ended = rank_processes.run(1, ["--config", str(file), "model.width=17", "seed=4"], tmp_path, code=2)
    assert "runs/run: this run exists already, with other settings: model.width: 16 there, 17 here" in ended.output
    assert "seed: 3 there, 4 here. Choose another train.name" in ended.output
    file = run_file(
        steps=4, save_every=2, ds={"optimizer": {"type": "AdamW", "params": {"lr": 1.0, "torch_adam": True}}}
    )
    ended = rank_processes.run(1, ["--config", str(file)], tmp_path, code=2)
    assert "DeepSpeed JSON: optimizer.params.lr: 0.01 there, 1.0 here" in ended.output
    ended = rank_processes.run(1, ["--config", str(run_file(steps=1))], tmp_path, code=2)
    assert "runs/run: has done 2 steps, but train.steps = 1" in ended.output
    ended = rank_processes.run(1, ["--config", str(run_file(steps=4, save_every=2))], tmp_path)
    assert "Resuming tests.support.toy_task (178 parameters) in runs/run, step 2 of 4" in ended.output
    assert steps(tmp_path / "runs/run") == [2, 4]
    assert digest(tmp_path / "runs/run/checkpoints/step_000002/model.safetensors") == before
    shutil.rmtree(tmp_path / "runs/run/checkpoints")  # as if every process had ended before the first checkpoint
    ended = rank_processes.run(1, ["--config", str(file := run_file(steps=2, save_every=2))], tmp_path)
    assert "Training tests.support.toy_task (178 parameters) in runs/run, step 0 of 2" in ended.output
    assert [line["step"] for line in metrics(tmp_path / "runs/run", "event", "train")] == [0, 2]
    assert digest(tmp_path / "runs/run/checkpoints/step_000002/model.safetensors") == before


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path, run_file, monkeypatch) -> None:
    run, config = tmp_path / "runs/run", RunConfig.load(run_file(steps=2))
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    monkeypatch.chdir(tmp_path)
    context = SimpleNamespace(is_main=True, broadcast=lambda value: value)
    with ExitStack() as lock:
        assert run_folder.prepare(config, None, context, lock).attempt == 0
        for resume in (None, run):
            with pytest.raises(ValueError, match=rf"another process trains this run \(process {os.getpid()} on"):
                run_folder.prepare(config, resume, context, ExitStack())
    with ExitStack() as lock:
        assert run_folder.prepare(config, None, context, lock).attempt == 1


def test_a_batch_size_that_does_not_fit_the_ranks_creates_no_run_folder(tmp_path, run_file) -> None:
    file = run_file(ds={"train_batch_size": 5})
    ended = rank_processes.run(2, ["--config", str(file)], tmp_path, code=2)
    assert ended.output.count("error:") == 1
    assert "train_batch_size = 5, train_micro_batch_size_per_gpu = 2 does not fit 2 ranks" in ended.output
    assert not (tmp_path / "runs").exists()


def test_a_configuration_that_deepspeed_rejects_names_the_file(tmp_path, run_file) -> None:
    file = run_file(ds={"optimizer": {"type": "SGD", "params": {"lr": 1e-3}}, "zero_optimization": {"stage": 1}})
    ended = rank_processes.run(2, ["--config", str(file)], tmp_path, code=2)
    assert ended.output.count("error:") == 1
    assert "deepspeed.json: DeepSpeed rejects this configuration" in ended.output
    assert "zero_allow_untested_optimizer" in ended.output


def test_an_unknown_key_of_the_json_creates_no_run_folder(tmp_path, run_file) -> None:
    ended = rank_processes.run(2, ["--config", str(run_file(ds={"gradient_cliping": 1.0}))], tmp_path, code=2)
    assert ended.output.count("error:") == 1
    assert "ds.json: unknown key gradient_cliping" in ended.output
    assert "did you mean gradient_clipping?" in ended.output
    assert not (tmp_path / "runs").exists()


def test_a_configuration_error_is_printed_by_one_rank(tmp_path, run_file) -> None:
    ended = rank_processes.run(2, ["--config", str(run_file()), "train.lr=1e-3"], tmp_path, code=2)
    assert ended.output.count("owned by the DeepSpeed JSON") == 1
    ended = rank_processes.run(1, ["--resume", "runs/nowhere"], tmp_path, code=2)
    assert "--resume runs/nowhere: not a run folder" in ended.output


@pytest.mark.parametrize("launched", [True, False])
def test_sigterm_does_not_end_a_launched_rank_that_has_failed_before_its_record(launched, monkeypatch) -> None:
    monkeypatch.setattr(signals, "_launcher_processes", lambda: [psutil.Process()] if launched else [])
    before, stop = signal.getsignal(signal.SIGTERM), signals.StopRequest()
    try:
        with pytest.raises(RuntimeError), stop:
            raise RuntimeError("Connection closed by peer")
        assert (signal.getsignal(signal.SIGTERM) == before) is not launched
        signal.signal(signal.SIGTERM, before)
        with stop:
            pass
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)
