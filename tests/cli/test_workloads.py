"""The commands ``ds4sci bench list``, ``info``, ``verify``, ``run`` and ``report`` on the toy task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ds4sci.cli.main import app
from ds4sci.train import launch
from ds4sci.train.distributed import free_port
from tests.support import forked_launchers, toy_benchmark, toy_dataset
from tests.support.toy_benchmark import EASY, HARD


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Function that writes the run file of the toy benchmark; ranks are forked instead of launched."""
    monkeypatch.setattr(
        launch, "run_launchers", lambda launches, **_: forked_launchers.run_launchers(launches, tmp_path)
    )

    def write(target: float = EASY, **keywords: Any) -> Path:
        return toy_benchmark.write(tmp_path, target, **keywords)

    return write


def bench(*arguments: Any, code: int | None = 0) -> Result:
    done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if code is not None:
        assert done.exit_code == code, done.output + str(done.exception)
    return done


def test_list_shows_workloads_and_components_apart(tmp_path, toy) -> None:
    toy()
    text = bench("list", tmp_path).output
    workloads, components = text.split("Kernels and components", 1)
    for name in ("fold", "operator", "protein_lm", "toy"):
        assert f"\n  {name} " in workloads
        assert f"\n  {name} " not in components
    assert "score ≥ -100" in workloads
    assert "\n  kernels " in components


def test_info_shows_target_and_hyperparameters(toy) -> None:
    text = bench("info", toy()).output
    for part in ("toy: A toy", "score ≥ -100 (higher is better)", "at most 12 steps", "optimizer.params.lr = 0.01"):
        assert part in text
    text = bench("info", toy(steps=8)).output
    assert "train.steps = 12   (the run file has 8)" in text


def test_run_trains_each_seed_to_the_target_and_reports(tmp_path, toy) -> None:
    out = tmp_path / "out"
    text = bench("run", toy(), "--seed", 5, "--seed", 7, "--ranks", 1, "--out", out).output
    assert "closed division" in text
    assert text.count("reached") == 2
    for seed in (5, 7):
        run = out / "toy" / f"seed_{seed}"
        assert json.loads((run / "config.json").read_text())["seed"] == seed
        assert (run / "checkpoints" / "latest").read_text() == "step_000002\n"

    # again: nothing is trained
    before = (out / "toy/seed_5/checkpoints/step_000002/state.json").read_bytes()
    assert "reached" in bench("run", toy(), "--seed", 5, "--ranks", 1, "--out", out).output
    assert (out / "toy/seed_5/checkpoints/step_000002/state.json").read_bytes() == before

    text = bench("run", toy(), "--mode", "inference", "--seed", 5, "--out", out).output
    assert "8 held-out examples" in text
    assert "at step 2, target reached" in text
    found = json.loads((out / "toy/seed_5/inference.json").read_text())
    trained = json.loads((out / "toy/seed_5/checkpoints/step_000002/state.json").read_text())
    assert found["value"] == pytest.approx(trained["reached"]["value"], rel=1e-6)

    # the pages of the runs, and a table of all workloads
    printed = bench("report", out / "toy", "--json", out / "workloads.json").output.split()
    page, table = out / "toy/report.html", out / "workloads.json"
    assert printed == [str(page), str(table)]
    text = page.read_text()
    assert "2 of 2" in text
    assert 'href="seed_5/report.html"' in text
    assert (out / "toy/seed_5/report.html").is_file()
    assert "All runs have the reference hyperparameters" in text
    measured = json.loads(table.read_text())
    row = dict(zip(measured["columns"], measured["rows"][0], strict=True))
    assert (row["workload"], row["runs"], row["reached"], row["steps, median"]) == ("toy", 2, 2, 2)
    assert row["steps, range"] == "2–2"
    assert row["minutes, median"] > 0
    assert row["examples/s, inference"] == pytest.approx(found["examples"] / found["seconds"])

    # rows of other workloads in the file stay, if they are of the same machine
    other = ["another workload", *measured["rows"][0][1:]]
    notes = [measured["notes"][0], "commits of the runs: 0123456789ab"]
    table.write_text(json.dumps(measured | {"rows": [other], "notes": notes}))
    bench("report", out / "toy", "--json", table)
    both = json.loads(table.read_text())
    assert both["rows"] == [other, measured["rows"][0]]
    assert "0123456789ab" in both["notes"][-1]
    table.write_text(json.dumps(both | {"machine": both["machine"] | {"cores": 3}}))
    page.unlink()
    failed = bench("report", out / "toy", "--json", table, code=None).exception
    assert f"made on another machine than {table} (cores: " in str(failed)
    assert not page.exists(), "nothing is written when the table cannot be"
    table.write_text(json.dumps({"columns": ["name"]}))
    failed = bench("report", out / "toy", "--json", table, code=None).exception
    assert f"{table}: not a table of times to quality" in str(failed)
    table.unlink()

    # times of two machines are not one table
    machine = out / "toy/seed_7/machine.json"
    machine.write_text(json.dumps(json.loads(machine.read_text()) | {"cpu": "another"}))
    failed = bench("report", out / "toy", "--json", table, code=None).exception
    assert "made on another machine than" in str(failed)


def test_a_missed_target_is_exit_code_1_and_the_division_is_open(tmp_path, toy) -> None:
    done = bench("run", toy(HARD), "--ranks", 1, "--out", tmp_path / "out", "train.steps=4", code=1)
    assert "open division" in done.output
    assert "train.steps = 4 (reference: 12)" in done.output
    assert "missed" in done.output
    text = Path(bench("report", tmp_path / "out/toy").output.strip()).read_text()
    assert "0 of 1" in text
    assert "Open division" in text
    assert "Inference has not been measured yet" in text


def test_instances_train_at_the_same_time_and_a_failed_one_is_reported(tmp_path, toy) -> None:
    out = tmp_path / "out"
    text = bench("run", toy(), "--instances", 2, "--out", out).output
    assert "2 of 2 instances reached the target" in text
    assert "2 instances with 1 rank each" in text
    seeds = [json.loads((out / f"toy/seed_{seed}/config.json").read_text())["seed"] for seed in (0, 1)]
    assert seeds == [0, 1]
    assert "step 2" in (out / "toy/seed_1.log").read_text()

    # rank 1 of an instance raises in step 0
    done = bench("run", toy(), "--instances", 2, "--ranks", 4, "--out", tmp_path / "bad", "data.raise_at=0", code=1)
    assert "seed 0 FAILED with exit code 1: " in done.output
    assert "the toy broke on purpose" in done.output
    assert "0 of 2 instances reached" in done.output


@pytest.mark.parametrize(("arguments", "message"), [
    (("--seed", 1, "--seed", 1), "every run needs a seed of its own"),
    (("seed=3",), "use the option --seed instead"),
    (("train.output=x",), "use the option --out instead"),
    (("--instances", 2, "--seed", 1), "give one --seed per instance"),
    (("--instances", 2, "--ranks", 3), "3 ranks cannot be divided among 2 instances"),
    (("--mode", "inference"), "no trained run; train it first"),
    (("--mode", "inference", "train.steps=3"), "takes --seed and --out only"),
    (("train.stepz=3",), "unknown key train.stepz"),
])  # fmt: skip
def test_arguments_that_cannot_be_used(tmp_path, toy, arguments, message) -> None:
    done = bench("run", toy(), *arguments, "--out", tmp_path / "out", code=None)
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
    assert not list(tmp_path.glob("out/toy/*"))


def test_report_of_other_folders(tmp_path) -> None:
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path, "no runs of a benchmark")):
        assert message in str(bench("report", folder, code=None).exception)


@pytest.mark.parametrize(("target", "metric", "message"), [
    (HARD, "score", ""),
    (EASY, "score", "the target score ≥ -100 is reached after one step"),
    (HARD, "scroe", "evaluations of the task tests.support.toy_task have no such metric; choose one of: score"),
])  # fmt: skip
def test_verify_trains_one_step(toy, monkeypatch, target, metric, message) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    done = bench("verify", toy(target, metric=metric), code=1 if message else 0)
    assert "ok      run file" in done.output
    assert message in " ".join(done.output.split())


def test_verify_reports_a_run_file_that_differs_from_its_reference(toy) -> None:
    done = bench("verify", toy(HARD, steps=4), code=1)
    assert "differs from benchmark.hyperparameters: train.steps = 4 (reference: 12)" in done.output
    assert "one training step" not in done.output


def test_datasets_are_checked_and_made(tmp_path, toy, monkeypatch) -> None:
    monkeypatch.setenv("DS4SCI_DATA", str(tmp_path / "data"))
    file = toy(datasets=(toy_dataset.NAME,))
    done = bench("verify", file, code=1)
    assert f"get it with: ds4sci data get {toy_dataset.NAME}" in done.output
    assert "absent" in bench("info", file).output
    arguments = ("run", file, "--ranks", 1, "--out", tmp_path / "out")
    assert "making toy_dataset version 3" in bench(*arguments).output
    assert "making" not in bench(*arguments).output

    stored = tmp_path / "data/toy_dataset-3/train-00000.bin"
    stored.write_bytes(b"T" + stored.read_bytes()[1:])  # one flipped byte
    done = bench("verify", file, code=1)
    assert "train-00000.bin" in done.output
    assert "making toy_dataset version 3" in bench(*arguments).output
    assert stored.read_bytes() == toy_dataset.FILES["train-00000.bin"]


def test_an_unknown_dataset_is_an_error(toy) -> None:
    file = toy(datasets=("cosmoss",))
    assert "unknown dataset 'cosmoss'; did you mean 'cosmo'" in bench("verify", file, code=1).output
    assert "unknown dataset 'cosmoss'" in str(bench("run", file, code=None).exception)


@pytest.mark.nightly
def test_the_launcher_stops_at_the_target_and_runs_instances(tmp_path) -> None:
    """The real launchers: ``deepspeed launch/train.py`` on two ranks, and two instances of ``ds4sci bench run``."""
    root = Path(__file__).resolve().parents[2]
    file = toy_benchmark.write(tmp_path, EASY, name="run")
    variables = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"]
    command = [*launcher, "--master_port", str(free_port()), str(root / "launch/train.py"), "--config", str(file)]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert "target reached: score" in done.stdout
    assert (tmp_path / "runs/run/checkpoints/latest").read_text() == "step_000002\n"

    command = [sys.executable, "-m", "ds4sci", "bench", "run", str(file), "--instances", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert "2 of 2 instances reached the target" in done.stdout
    assert "target reached" in (tmp_path / "runs/benchmarks/toy/seed_1.log").read_text()
