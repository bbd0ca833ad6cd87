"""Neural operators on DeepSpeed: gradients of every ZeRO stage on two ranks, and complete runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ds4sci.cli.main import app
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.report.run_report import write_report
from ds4sci.train import checkpoint
from tests.support import operator_step, rank_processes
from tests.support.run_files import losses

ADAM = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
PDES = ("burgers", "plate", "stokes")


def plain(case: dict[str, Any], dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of all functions in one process, without DeepSpeed."""
    made = operator_step.task(case["pde"], "func_loop")
    made.model.to(dtype)
    batch = operator_step.batch(made)
    sets = {name: {key: x.to(dtype) for key, x in getattr(batch, name).items()} for name in ("points", "given")}
    batch = type(batch)(batch.ids, batch.functions.to(dtype), **sets)
    loss = made.loss(made.model(batch), batch)[0]
    loss.backward()
    return float(loss.detach()), {name: p.grad.double() for name, p in made.model.named_parameters()}


@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.nightly), pytest.param(1, marks=pytest.mark.nightly), 2]
)
def test_two_ranks_have_the_gradients_of_one_process(stage: int, tmp_path: Path) -> None:
    cases = [
        {
            "pde": pde, "derivatives": derivatives,
            "deepspeed": {
                "train_micro_batch_size_per_gpu": operator_step.FUNCTIONS // 2, "optimizer": ADAM,
                "zero_optimization": {"stage": stage},
            },
        }
        for pde in PDES
        for derivatives in (("zcs_reverse", "zcs_forward") if pde == "burgers" else ("zcs",))
    ]  # fmt: skip
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    rank_processes.call(2, operator_step.steps, [str(tmp_path / "cases.json"), str(tmp_path / "out.pt")], tmp_path)
    for case, found in zip(cases, torch.load(tmp_path / "out.pt", weights_only=True), strict=True):
        exact_loss, exact = plain(case, torch.float64)
        one_loss, one = plain(case, torch.float32)
        # Of the whole gradient: single parameters may be tiny beside it, and their round-off is of the whole.
        size = torch.stack([grad.norm() for grad in exact.values()]).norm()
        allowed = 3 * max(float((one[name] - grad).norm() / size) for name, grad in exact.items())
        assert allowed < 1e-4, case
        apart = abs(found["loss"] - exact_loss)
        assert apart <= 3 * max(abs(one_loss - exact_loss), 1e-7 * abs(exact_loss)), case
        for name, grad in exact.items():
            assert float((found["grads"][name].view_as(grad) - grad).norm() / size) <= max(allowed, 3e-7), (case, name)
        assert found["scored"] == 2


def test_zero_3_is_refused_with_the_reason(tmp_path: Path, run_file: Path) -> None:
    settings = json.loads((tmp_path / "ds.json").read_text()) | {"zero_optimization": {"stage": 3}}
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    ended = rank_processes.RankProcesses(1, ["--config", str(run_file)], tmp_path).join()
    assert ended.codes == [2]
    assert "deepspeed.json: ZeRO stage 3 cannot train a model that differentiates itself" in ended.output
    assert "take stage 0, 1 or 2" in ended.output


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    config = {
        "train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1.0, "optimizer": ADAM,
        "zero_optimization": {"stage": 1},
    }  # fmt: skip
    (tmp_path / "ds.json").write_text(json.dumps(config))
    file = tmp_path / "run.toml"
    file.write_text(
        'deepspeed = "ds.json"\n[task]\nname = "neural_operator"\n'
        '[train]\nsteps = 8\nevaluate_every = 4\nsave_every = 4\nkeep_last = 9\nlog_every = 1\nname = "run"\n'
        '[pde]\nname = "reaction_diffusion"\n'
        "[model]\nbranch = [16]\ntrunk = [16, 16]\nlatent = 8\n"
        "[data]\npoints = 32\nboundary_points = 8\nvalid_functions = 3\n"
    )
    return file


def test_a_run_resumes_and_is_evaluated_and_plotted(tmp_path: Path, run_file: Path) -> None:
    rank_processes.run(2, ["--config", str(run_file)], tmp_path)
    run = tmp_path / "runs/run"
    again = tmp_path / "runs/again"
    shutil.copytree(run, again)
    shutil.rmtree(checkpoint.checkpoint_folder(again, 8))
    rank_processes.run(2, ["--resume", str(again)], tmp_path)
    assert losses(again) == losses(run)
    out = tmp_path / "scores.json"
    done = CliRunner().invoke(app, ["eval", "--run", str(run), "--json", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    errors = np.array(found["errors"])
    assert errors.shape == (100, 1)
    assert found["relative_l2"] == pytest.approx(errors.mean())
    assert 0.05 < found["relative_l2"] < 5
    assert out.with_suffix(".png").stat().st_size > 10_000
    page = write_report(run).read_text()
    assert "<h2>Scores</h2>" in page
    assert "relative l2" in page
    assert f"ds4sci eval --run {run} --json {run}/scores.json" in page
    assert not any(word in page for word in ("chains", "protein", "lDDT"))


def test_the_error_is_that_of_the_definition(tmp_path: Path, run_file: Path) -> None:
    from ds4sci.config.run_file import RunConfig
    from ds4sci.tasks.build import build_task
    from ds4sci.tasks.neural_operator import TEST, VALID, NeuralOperatorTask, relative_l2

    task = build_task(RunConfig.load(run_file))
    assert isinstance(task, NeuralOperatorTask)
    reference = task.pde.solve(task.coefficients(TEST, [0, 1]))
    assert not np.allclose(task.coefficients(TEST, [0]), task.coefficients(VALID, [0]))
    assert relative_l2(1.25 * reference, reference) == pytest.approx(0.25 * np.ones((2, 1)))
    assert relative_l2(0 * reference, reference) == pytest.approx(np.ones((2, 1)))
    lifted = relative_l2(reference + 7.0, reference, [True])
    assert lifted == pytest.approx(np.zeros((2, 1)), abs=1e-12)


def test_configuration_errors_name_the_key(tmp_path: Path, run_file: Path) -> None:
    from ds4sci.config.run_file import RunConfig
    from ds4sci.tasks.build import build_task

    with pytest.raises(ValueError, match=r"loss\.weights has walls; reaction_diffusion has equation, initial, ends"):
        build_task(RunConfig.load(run_file, ["loss.weights={walls=1}"]))
    with pytest.raises(ValueError, match="pde"):
        build_task(RunConfig.load(run_file, ["pde.name=heat"]))
    with pytest.raises(ValueError, match="expected one of zcs"):
        RunConfig.load(run_file, ["loss.derivatives=jet"])
    fold = CliRunner().invoke(app, ["eval", "--run", str(tmp_path / "none"), "--json", str(tmp_path / "x.json")])
    assert fold.exit_code != 0
    with pytest.raises(ValueError, match="none"):
        evaluate_run(tmp_path / "none", tmp_path / "x.json")
