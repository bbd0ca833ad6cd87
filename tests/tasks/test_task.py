"""The task protocol: defaults of the base class, and a task outside the package through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from typer.testing import CliRunner

from ds4sci.cli.main import app
from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task, task_names
from ds4sci.parallel.groups import SequenceGroup
from ds4sci.tasks import Exportable, SequenceEmbedder, SequenceParallel, StructurePredictor, batch_weight
from ds4sci.tasks.build import build_task
from ds4sci.tasks.evaluations import Evaluation, EvaluationResult, select_evaluation
from ds4sci.tasks.language_task import LanguageTask
from tests.support import third_party_task, toy_task

CHAINS = Path(__file__).parents[2] / "examples" / "fold" / "data" / "chains_valid.npz"
FASTA = ">a\nMKTAYIAKQRQISFVKSHF\n>b\nGSHMLEDPVD\n"


def make_run(folder: Path, task: str = "tests.support.third_party_task") -> Path:
    """A run folder with the checkpoint ``step_000007`` of a model that was built, not trained."""
    (folder / "ds.json").write_text(json.dumps({"train_batch_size": 1, "optimizer": {"type": "AdamW"}}))
    file = folder / "run.toml"
    file.write_text(f'deepspeed = "ds.json"\n[task]\nname = "{task}"\n[train]\nsteps = 7\nname = "lab"\n')
    config = RunConfig.load(file, ["model.initial_distance=3.5"] if "third" in task else [])
    checkpoint = folder / "lab" / "checkpoints" / "step_000007"
    checkpoint.mkdir(parents=True)
    weights = {name: x.contiguous() for name, x in build_task(config).model.state_dict().items()}
    safetensors.torch.save_file(weights, checkpoint / "model.safetensors")
    for place in (folder / "lab", checkpoint):
        config.save(place)
    for pointer in ("best", "latest"):
        (checkpoint.parent / pointer).write_text("step_000007\n")
    return folder / "lab"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "in.fa").write_text(FASTA)
    return make_run(tmp_path)


def call(*arguments: object) -> str:
    """Output of ``ds4sci`` with these arguments, which must succeed."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_default_weight_counts_samples_and_invalid_weights_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    task = toy_task.build(toy_task.Config(), seed=0, steps=1)
    batch = SimpleNamespace(ids=("one", "two"), step=7)
    assert batch_weight(task, batch) == 2
    monkeypatch.setattr(task, "weight", lambda given: 0.5)
    assert batch_weight(task, batch) == 0.5
    for wrong in (-1.0, float("nan"), float("inf")):
        monkeypatch.setattr(task, "weight", lambda given, wrong=wrong: wrong)
        with pytest.raises(ValueError, match=r"step 7: .* at least 0; Task.weight returned .* for one, two"):
            batch_weight(task, batch)


def test_ranks_that_share_rows_count_all_tokens_together() -> None:
    language = SimpleNamespace(flops=lambda spans: 8.0)
    task: Any = SimpleNamespace(group=SequenceGroup(size=2), language=language)
    batch: Any = SimpleNamespace(tokens=3, doc_spans=None)
    assert LanguageTask.work(task, batch) == (1.5, 4.0)


def test_optional_methods_have_defaults(tmp_path: Path) -> None:
    task = toy_task.build(toy_task.Config(), seed=0, steps=1)
    assert task.work(None) is None
    assert task.coverage() == {}
    task.save_assets(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert list(task.evaluations()) == ["held_out"]


def test_capabilities_are_recognised() -> None:
    toy = toy_task.build(toy_task.Config(), seed=0, steps=1)
    lab = third_party_task.build(third_party_task.Config(), seed=0, steps=1)
    for capability in (StructurePredictor, Exportable, SequenceEmbedder, SequenceParallel):
        assert not isinstance(toy, capability)
    assert isinstance(lab, StructurePredictor)
    assert isinstance(lab, Exportable)
    assert not isinstance(lab, SequenceEmbedder)


def test_the_registry_lists_the_tasks() -> None:
    assert task_names() == [
        "causal_lm", "denoising", "fold", "image", "masked_lm", "neural_operator", "segmentation", "surrogate",
        "token_classification", "volume_regression",
    ]  # fmt: skip
    with pytest.raises(
        ValueError, match=r"no module ds4sci\.tasks\.folds; available tasks: causal_lm, denoising, fold"
    ):
        import_task("folds")
    assert import_task("fold").asset_overrides(Path("run")) == []
    assert import_task("fold").summary.startswith("Task: predict protein structures")


def test_build_must_return_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "tests.support.toy_task")
    monkeypatch.setattr(toy_task, "build", lambda config, seed, steps: SimpleNamespace())
    with pytest.raises(ValueError, match=r"returned SimpleNamespace; expected an instance of ds4sci\.tasks\.Task"):
        build_task(RunConfig.load(tmp_path / "run.toml"))


def test_every_evaluation_of_a_task_is_reached_from_the_command_line(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert "score" in call("eval", "--run", run, "--json", out)
    result = json.loads(out.read_text())
    assert result["evaluation"] == "held_out"
    assert result["rows"] == [{"id": "distance", "error": pytest.approx(0.3)}]
    assert (result["name"], result["checkpoint"], result["step"]) == ("lab", "best", 7)
    assert {"run", "overrides", "machine", "commit", "finished", "seconds"} <= result.keys()

    printed = call("eval", "--run", run, "--json", out, "--fasta", tmp_path / "in.fa", "--ngrams")
    assert "29 residues" in printed
    assert f"wrote {tmp_path / 'out.txt'}" in printed
    result = json.loads(out.read_text())
    assert (result["evaluation"], result["counts"]["M"], result["pairs"]) == ("composition", 2, 28)
    assert (tmp_path / "out.txt").read_text().startswith("MKTAY")

    call("eval", "--run", run, "--json", out, "--chains", CHAINS)
    result = json.loads(out.read_text())
    assert len(result["per_chain"]) == 160
    assert 0 < result["mean"]["lddt_ca"] < 1

    untrained = ["--checkpoint", "untrained", "model.initial_distance=3.8"]
    call("eval", "--run", run, "--json", out, *untrained)
    assert json.loads(out.read_text())["mean"]["score"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--contacts", "x.npz"], "no evaluation takes --contacts; this task has the evaluations: held_out"),
        (["--fasta", "x", "--variants", "y"], "no evaluation takes --fasta, --variants"),
        (["--fasta", "x", "--marginal", "masked"], "the evaluation 'composition' does not take --marginal"),
        (["--ngrams"], "the evaluation 'held_out' does not take --ngrams"),
    ],
)
def test_a_flag_that_the_task_does_not_offer_lists_its_evaluations(
    flags: list[str], words: str, run: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["eval", "--run", str(run), "--json", str(tmp_path / "o.json"), *flags])
    assert isinstance(done.exception, ValueError)
    text = str(done.exception)
    assert words in text
    assert "task tests.support.third_party_task" in text
    assert "held_out (no input); structures (--chains); composition (--fasta [--ngrams])" in text
    assert not (tmp_path / "o.json").exists()


def test_a_task_without_evaluations_says_so() -> None:
    with pytest.raises(ValueError, match=r"no evaluation takes --fasta; this task has the evaluations: none"):
        select_evaluation({}, {"fasta"}, set())
    one = Evaluation(lambda request: EvaluationResult({}), inputs=("fasta",))
    with pytest.raises(ValueError, match=r"no evaluation runs without an input file; .*: one \(--fasta\)"):
        select_evaluation({"one": one}, set(), set())


def test_a_third_party_task_predicts_structures(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = call("predict", "--run", run, "--fasta", tmp_path / "in.fa", "--out", out)
    assert str(out / "a.cif") in printed
    summary = json.loads((out / "summary.json").read_text())
    assert [row["status"] for row in summary["records"]] == ["predicted", "predicted"]
    assert [row["plddt"] for row in summary["records"]] == [50.0, 50.0]
    assert (out / "b.pdb").read_text().count(" CA ") == 10


def test_a_third_party_task_is_exported(run: Path, tmp_path: Path) -> None:
    call("export", "--run", run, tmp_path / "exported")
    assert np.load(tmp_path / "exported" / "distance.npy") == pytest.approx([3.5])
    assert json.loads((tmp_path / "exported" / "ds4sci.json").read_text())["checkpoint"] == "step_000007"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["predict", "--fasta", "in.fa", "--out", "out"], "cannot predict structures; the task needs `featurize`"),
        (["export", "out"], "cannot be exported; the task needs the method `export`"),
        (["embed", "--fasta", "in.fa", "--out", "out"], "cannot embed sequences; the task needs the methods `embed`"),
    ],
)
def test_a_missing_capability_is_named(
    command: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.fa").write_text(FASTA)
    run = make_run(tmp_path, "tests.support.toy_task")
    done = CliRunner().invoke(app, [command[0], "--run", str(run), *command[1:]])
    assert isinstance(done.exception, ValueError)
    assert words in str(done.exception)
    assert "its task 'tests.support.toy_task'" in str(done.exception)
    assert not (tmp_path / "out").exists()
