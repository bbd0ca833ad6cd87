"""Scores of samples against transformers and torch, one sample at a time; training on selected samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from ds4sci.cli.main import app
from ds4sci.data import score_file
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.inference import ranks as inference_ranks
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.nn.token_loss import token_losses
from ds4sci.select import landscape_page
from ds4sci.select.scoring import score_runs
from ds4sci.tasks.build import build_task
from ds4sci.types import IGNORE_INDEX
from tests.support import layouts, rank_processes


def train(folder: Path, task: str, *, ranks: int = 1, name: str = "", **more: Any) -> Path:
    """Train a small model for four steps, and return its folder."""
    config = layouts.configure(task, folder, **more)
    name = name or task.replace(" ", "_")
    (folder / f"{name}_ds.json").write_text(json.dumps(layouts.deepspeed(1, 8 // ranks, 1)))
    rows = [{"config": str(config.source), "deepspeed": str(folder / f"{name}_ds.json"), "name": name}]
    (folder / "cases.json").write_text(json.dumps(rows))
    rank_processes.call(ranks, layouts.run, [str(folder / "cases.json")], folder, seconds=120)
    return folder / "runs" / name


def select(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["select", *map(str, arguments)])


def test_errors_of_tokens_are_distances_from_the_label() -> None:
    """Chunked, sparse and dense; a token that is predicted almost surely keeps its digits."""
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 40, 8), torch.nn.Linear(8, 5)
    head.weight.data *= 6
    for labelled in (0.9, 0.2):
        labels = torch.where(torch.rand(2, 40) < labelled, torch.randint(0, 5, (2, 40)), IGNORE_INDEX)
        losses, _, errors = token_losses(hidden, labels, head, 5, with_errors=True)
        probabilities = F.linear(hidden.double(), head.weight.double(), head.bias.double()).softmax(-1)
        wanted = (probabilities - F.one_hot(labels.clamp(min=0), 5)).norm(dim=-1) * (labels != IGNORE_INDEX)
        assert errors is not None
        assert not errors.requires_grad
        torch.testing.assert_close(errors.double(), wanted, rtol=2e-6, atol=1e-7)
        assert labelled < 0.5 or (wanted[labels != IGNORE_INDEX] < 1e-3).any()
        torch.testing.assert_close(losses, token_losses(hidden, labels, head, 5)[0])


def test_scores_of_chains_are_those_of_transformers_alone(tmp_path: Path) -> None:
    """Per-residue secondary structure: loss, EL2N and the gradient of the last layer of every training chain."""
    run = train(tmp_path, "token_classification")
    wanted = ("loss", "el2n", "gradient_norm", "gradient_norm_full")
    found = score_runs([run], tmp_path / "scores.npz", wanted=wanted)
    chains = ChainSet.open(tmp_path / "train.npz")
    assert found.name.tolist() == chains.ids
    read = score_file.read(tmp_path / "scores.npz")
    assert read.about["dataset"] == score_file.dataset_fingerprint(chains.ids)

    from ds4sci.inference.trained_run import TrainedRun

    task: Any = TrainedRun.load(run).task
    inner = task.language.model.double()
    inner.set_attn_implementation("eager")
    for module in inner.modules():
        if hasattr(module, "token_dropout"):
            module.token_dropout = True  # as transformers' own forward pass has it
    for number, (given, batch) in enumerate(task.sample_batches()):
        assert given == number
        tokens, labels = batch.input_ids[:, : batch.tokens], batch.labels[0, : batch.tokens]
        logits = inner(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
        has_label = labels != IGNORE_INDEX
        loss = F.cross_entropy(logits[has_label], labels[has_label])
        error = (logits.softmax(-1)[has_label] - F.one_hot(labels[has_label], logits.shape[-1])).norm(dim=-1).mean()
        parameters = dict(inner.named_parameters())
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        squares = {k: float(g.square().sum()) for k, g in zip(parameters, grads, strict=True) if g is not None}
        last = sum(value for key, value in squares.items() if key.startswith("classifier."))
        for name, value in zip(wanted, (loss, error, last**0.5, sum(squares.values()) ** 0.5), strict=True):
            assert found.scores[name][number] == pytest.approx(float(value), rel=1e-5), (name, number)


def test_scores_do_not_depend_on_the_layout_of_the_run(tmp_path: Path) -> None:
    """Packed or not, one rank or two: the same weights give the same scores; two runs give their mean."""
    one = train(tmp_path, "masked_lm")
    two = train(tmp_path, "masked_lm", ranks=2, name="two", data={"packing": False})
    weights = safetensors.torch.load_file(one / "checkpoints/step_000004/model.safetensors")
    safetensors.torch.save_file(weights, two / "checkpoints/step_000004/model.safetensors")
    seal(two)
    first, second = (score_runs([run], tmp_path / f"{run.name}.npz", wanted=("loss", "el2n")) for run in (one, two))
    for name in ("loss", "el2n"):
        np.testing.assert_allclose(first.scores[name], second.scores[name], rtol=1e-5)
    assert len(first.name) > 50
    task: Any = build_task(layouts.configure("masked_lm", tmp_path))
    assert first.name.tolist() == task.sample_names()

    other = train(tmp_path, "masked_lm", name="other", train={"weights": None})
    apart = [score_runs([run], tmp_path / "x.npz", wanted=("loss",)).scores["loss"] for run in (one, other)]
    twice = ("loss", "learnability", "loss", "learnability")
    both = score_runs([one, other], tmp_path / "x.npz", wanted=twice, reference=other)
    np.testing.assert_allclose(both.scores["loss"], sum(apart) / 2, rtol=1e-12)
    np.testing.assert_allclose(both.scores["learnability"], sum(apart) / 2 - apart[1], atol=1e-12)


def seal(run: Path) -> None:
    """Make the checksums of a changed checkpoint right again."""
    from ds4sci.files.atomic_files import fingerprint

    folder = run / "checkpoints/step_000004"
    for file in folder.glob("*.json"):
        tree = json.loads(file.read_text())
        if isinstance(tree, dict) and "model.safetensors" in tree.get("files", {}):
            tree["files"]["model.safetensors"] = fingerprint(folder / "model.safetensors")
            file.write_text(json.dumps(tree))


@pytest.mark.parametrize("task", ["fold", "masked_lm", "token_classification", "volume_regression"])
def test_a_run_trains_on_the_selected_samples_only(task: str, tmp_path: Path) -> None:
    """Every kind of data, on one rank and on two, packed: all kept samples and no others, in the same order."""
    names = build_task(layouts.configure(task, tmp_path)).sample_names()  # type: ignore[attr-defined]
    values = np.random.default_rng(3).normal(size=len(names))
    path = tmp_path / "scores.npz"
    about = {"dataset": score_file.dataset_fingerprint(names)}
    score_file.write(path, score_file.ScoreFile(path, np.arange(len(names)), np.array(names), {"x": values}, about))
    selection = {"keep": "lowest", "fraction": 0.5, "scores": str(path), "score": "x"}
    made = build_task(layouts.configure(task, tmp_path, data={"selection": selection}))
    kept = {names[i].split(":")[0] for i in np.argsort(values)[: round(len(names) / 2)]}

    def ids(ranks: int, steps: int) -> list[str]:
        size = {"micro_batch_size": 4 // ranks, "accumulation_steps": 1, "world_size": ranks}
        streams = [made.batches(start_step=0, rank=rank, **size) for rank in range(ranks)]
        return [name.split(":")[0] for _ in range(steps) for stream in streams for name in next(stream).ids]

    steps = 16
    assert ids(1, steps) == ids(2, steps)
    assert set(ids(1, steps)) == kept
    if task in ("masked_lm", "token_classification"):
        coverage = next(iter(made.coverage().values()))
        assert coverage.excluded["not selected"] > 0
        assert coverage.total_residues == coverage.tokenized_residues + sum(coverage.excluded.values())


def test_the_commands_and_what_they_refuse(tmp_path: Path) -> None:
    """Score a run, train on its easier half, and resume only with the same scores."""
    run, scores = train(tmp_path, "token_classification"), tmp_path / "scores.npz"
    done = select("score", run, "--score", "el2n", "--score", "loss", "--out", scores)
    assert done.exit_code == 0, done.output
    assert "el2n: mean" in done.output
    assert "24 samples" in done.output
    assert "exists" in str(select("score", run, "--out", scores).exception)
    assert "no score 'hardness'" in str(select("score", run, "--score", "hardness", "--out", tmp_path / "y").exception)
    assert "needs a reference run" in str(
        select("score", run, "--score", "learnability", "--out", tmp_path / "y").exception
    )
    selection = {"keep": "lowest", "fraction": 0.5, "scores": str(scores)}
    more = {"data": {"selection": selection, "packing": False}, "train": {"save_every": 1, "steps": 3}}
    half = train(tmp_path, "token_classification", name="half", **more)
    assert json.loads((half / "inputs.json").read_text())["data.selection.scores"].startswith("sha256 ")

    found = score_file.read(scores)
    score_file.write(scores, score_file.ScoreFile(scores, found.sample, found.name, {"el2n": -found.scores["el2n"]}))
    with pytest.raises(AssertionError, match=r"data\.selection\.scores has changed since the run began"):
        rank_processes.call(1, resume, [str(half)], tmp_path, seconds=120)


def resume(run: str) -> None:
    from ds4sci.config.run_file import RunConfig
    from ds4sci.train.run import Session

    folder = Path(run)
    config = RunConfig.load(folder / "config.json", ["train.steps=4"], deepspeed=folder / "deepspeed.json")
    Session.join(config, resume=folder).train()


def test_pages_and_lists_of_a_run(tmp_path: Path) -> None:
    """The report of scores, the list of a filter, and the landscape with both kinds of data."""
    run, scores = train(tmp_path, "token_classification"), tmp_path / "scores.npz"
    found = score_runs([run], scores, wanted=("loss", "el2n"))
    page = Path(select("report", scores).output.strip())
    text = page.read_text()
    assert page == scores.with_suffix(".html")
    assert str(found.name[int(np.argmax(found.scores["el2n"]))]) in text
    assert "Agreement" in text

    kept = tmp_path / "kept.tsv"
    done = select("filter", scores, "--keep", "lowest", "--fraction", 0.25, "--score", "loss", "--out", kept)
    lines = [line.split("\t") for line in kept.read_text().splitlines()]
    assert lines[0] == ["sample", "name", "loss", "kept"]
    lowest = set(np.argsort(found.scores["loss"])[:6].tolist())
    assert {int(one[0]) for one in lines[1:] if one[3] == "1"} == lowest
    assert 'keep = "lowest"\nfraction = 0.25' in done.output
    assert "exists" in str(
        select("filter", scores, "--keep", "lowest", "--fraction", 0.25, "--score", "loss", "--out", kept).exception
    )

    assert 'scores = "' + str(scores.absolute()) in done.output

    unseen = {"loss": np.where(np.arange(24) < 4, np.nan, found.scores["loss"])}
    score_file.write(tmp_path / "part.npz", score_file.ScoreFile(scores, found.sample, found.name, unseen))
    text = Path(select("report", tmp_path / "part.npz").output.strip()).read_text()
    assert "4 of 24 samples have no finite score" in text
    few = select("filter", tmp_path / "part.npz", "--keep", "lowest", "--fraction", 1, "--score", "loss", "--out", "x")
    assert "that it did not select or not reach" in str(few.exception)
    none = select("filter", scores, "--keep", "lowest", "--fraction", 1, "--out", tmp_path / "no/kept.tsv")
    assert "does not exist" in str(none.exception)

    assert "--span nan" in str(select("landscape", run, "--span", "nan").exception)
    assert "--grid 1" in str(select("landscape", run, "--grid", 1).exception)
    small = ["--samples", 3, "--points", 3, "--grid", 3, "--iterations", 2]
    done = select("landscape", run, *small)
    assert done.exit_code == 0, done.output
    assert "λ_max has not converged" in done.output
    measured = json.loads((run / "landscape/landscape.json").read_text())
    assert [one["data"] for one in measured["surfaces"]] == ["train", "valid"]
    for one in measured["surfaces"]:
        assert one["line"]["loss"][1] == pytest.approx(one["loss"], rel=1e-12)
        assert one["plane"]["loss"][1][1] == pytest.approx(one["loss"], rel=1e-12)
    assert "λ_max" in (run / "landscape/landscape.html").read_text()
    given = [f'data.weights.scores="{scores}"', 'data.weights.score="loss"']
    plain, weighted = (landscape_page.surface_of(TrainedRun.load(run, "best", own), "train", 24) for own in ([], given))
    loss = found.scores["loss"]
    np.testing.assert_allclose(np.divide(weighted.shares, plain.shares), loss / loss.mean(), rtol=1e-12)


@pytest.mark.slow
def test_two_ranks_share_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and landscape are those of one rank within rounding."""
    monkeypatch.setattr(inference_ranks, "get_context", rank_processes.forked_from_server)
    run = train(tmp_path, "token_classification")
    one, two = (
        score_runs([run], tmp_path / f"{ranks}.npz", fraction=0.7, ranks=ranks).scores for ranks in (1, 2)
    )  # fmt: skip
    for name in ("loss", "el2n"):
        assert np.isnan(one[name]).sum() == 7, "of 24"
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5)
    plan = landscape_page.Plan(samples=5, points=3, grid=0, iterations=4)
    alone, shared = (landscape_page.measure(run, plan, ranks=ranks)["surfaces"] for ranks in (1, 2))
    for first, second in zip(alone, shared, strict=True):
        assert first["samples"] == second["samples"] == (5 if first["data"] == "train" else 1)
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-12)
        assert second["line"]["loss"] == pytest.approx(first["line"]["loss"], rel=1e-12)
        assert second["largest"] == pytest.approx(first["largest"], rel=1e-5)
        assert second["trace"] == pytest.approx(first["trace"], rel=1e-5)


def test_tasks_without_classes_have_no_el2n(tmp_path: Path) -> None:
    run = train(tmp_path, "volume_regression")
    assert len(score_runs([run], tmp_path / "x.npz", wanted=("loss", "gradient_norm")).name) == 40
    with pytest.raises(ValueError, match="predicts no classes, so it has no el2n"):
        score_runs([run], tmp_path / "x.npz", wanted=("el2n",))
    operator = train(tmp_path, "neural_operator")
    with pytest.raises(ValueError, match="cannot score its samples"):
        score_runs([operator], tmp_path / "x.npz")
