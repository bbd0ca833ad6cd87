"""Task ``image`` on DeepSpeed: two ranks equal one, by data and by sequence parallelism, and complete runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ds4sci import __version__
from ds4sci.cli.main import app
from ds4sci.config import run_version
from ds4sci.report.run_report import write_report
from ds4sci.train import checkpoint
from tests.support import image_tasks, rank_processes
from tests.support.image_tasks import CASES
from tests.support.run_files import losses


def plain(head: str, axes: int, folder: Path, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of all examples in one process, without DeepSpeed."""
    made = image_tasks.make_task(head, axes, folder)
    made.model.to(dtype)
    batch = image_tasks.batch(made)
    loss = made.loss(made.model(batch), batch)[0]
    loss.backward()
    return float(loss.detach()), {key: p.grad.double() for key, p in made.model.named_parameters()}


NIGHTLY = [pytest.param(*case, marks=pytest.mark.nightly) for case in ((1, (0, 3)), (2, (0, 1, 2)))]


@pytest.mark.parametrize(("sequence", "stages"), [(2, (3,)), *NIGHTLY])
def test_two_ranks_equal_one(sequence: int, stages: tuple[int, ...], tmp_path: Path) -> None:
    """Loss, gradients and scores of each head; errors at most 3 times those of one rank in fp32.

    With ``sequence`` = 2 both ranks share every example: 6 or 8 patches and the class token, three heads or two.
    """
    for head, axes in CASES:
        image_tasks.write_data(head, axes, tmp_path)
    arguments = [str(tmp_path), sequence, str(list(stages))]
    rank_processes.call(2, image_tasks.steps, arguments, tmp_path, seconds=240)
    results = torch.load(tmp_path / "out.pt", weights_only=True)
    assert len(results) == len(CASES) * len(stages)
    for head, axes in CASES:
        folder = tmp_path / f"{head}{axes}"
        exact_loss, exact = plain(head, axes, folder, torch.float64)
        one_loss, one = plain(head, axes, folder, torch.float32)
        size = torch.stack([grad.norm() for grad in exact.values()]).norm()
        allowed = 3 * max(float((one[key] - grad).norm() / size) for key, grad in exact.items())
        assert allowed < 1e-4, head
        made = image_tasks.make_task(head, axes, folder)
        rows = made.evaluate(made.model.eval(), rank=0, world_size=1, device=torch.device("cpu"))
        for case, found in results.items():
            if not case.startswith(f"{head} {axes} "):
                continue
            assert abs(found["loss"] - exact_loss) <= 3 * max(abs(one_loss - exact_loss), 1e-7 * exact_loss), case
            for key, grad in exact.items():
                error = float((found["grads"][key].view_as(grad) - grad).norm() / size)
                assert error <= max(allowed, 3e-7), (case, key)
            assert found["summary"] == pytest.approx(made.summarize(rows), rel=1e-4), case


def run_file(head: str, axes: int, folder: Path, sequence: int, **train: Any) -> Path:
    settings = {
        "train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 1},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }  # fmt: skip
    (folder / "ds.json").write_text(json.dumps(settings))
    tree: dict[str, Any] = image_tasks.sections(head, axes, image_tasks.write_data(head, axes, folder))
    tree["deepspeed"], tree["task"], tree[run_version.KEY] = str(folder / "ds.json"), {"name": "image"}, __version__
    tree["parallel"] = {"sequence": sequence}
    tree["train"] = {
        "steps": 4, "evaluate_every": 2, "save_every": 2, "keep_last": 9, "log_every": 1, "name": "run",
        "output": str(folder / "runs"),
    } | train  # fmt: skip
    (folder / "run.json").write_text(json.dumps(tree))
    return folder / "run.json"


@pytest.mark.parametrize(
    ("head", "axes", "sequence"),
    [("segmentation", 3, 2), pytest.param("masked_autoencoder", 3, 1, marks=pytest.mark.nightly)],
)
def test_a_run_resumes_and_is_evaluated_and_reported(head: str, axes: int, sequence: int, tmp_path: Path) -> None:
    file = run_file(head, axes, tmp_path, sequence)
    rank_processes.run(2, ["--config", str(file)], tmp_path)
    run, again = tmp_path / "runs/run", tmp_path / "runs/again"
    shutil.copytree(run, again)
    shutil.rmtree(checkpoint.checkpoint_folder(again, 4))
    rank_processes.run(2, ["--resume", str(again)], tmp_path)
    assert losses(again) == losses(run)
    out = tmp_path / "scores.json"
    done = CliRunner().invoke(app, ["eval", "--run", str(run), "--json", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert len(found["rows"]) == 3
    assert out.with_suffix(".png").stat().st_size > 5_000
    page = write_report(run).read_text()
    for row in found["comparison"]["rows"]:
        assert row[0] in page
    done = CliRunner().invoke(app, ["export", "--run", str(run), str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "model/image_model.json").read_text())["head"] == head
