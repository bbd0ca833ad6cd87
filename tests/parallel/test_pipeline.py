"""Pipeline stages against the whole model, and runs with stages against fp64 torch in one process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from ds4sci.config.run_file import RunConfig
from ds4sci.parallel.pipeline import PipelineGroup, split_evenly
from ds4sci.tasks.build import build_task
from tests.support import layouts, pipeline_ranks, rank_processes
from tests.support.layouts import BATCH, STEPS


def configure(name: str, folder: Path, **more: Any) -> RunConfig:
    """Return the config of a case, whose files are in ``folder / name``."""
    task, sections = pipeline_ranks.CASES[name]
    (folder / name).mkdir(parents=True, exist_ok=True)
    return layouts.configure(
        task, folder / name, **{key: sections.get(key, {}) | more.get(key, {}) for key in sections | more}
    )


def train(
    names: list[str], ranks: int, stages: int, folder: Path, *, micro: int = 2, program: Any = pipeline_ranks.run,
    **more: Any,
) -> dict[str, Path]:  # fmt: skip
    """Train the cases on ``stages`` stages. Returns their run folders."""
    accumulation = BATCH // (micro * (ranks // stages))
    rows, runs = [], {}
    for name in names:
        config = configure(name, folder, parallel={"pipeline": stages})
        file = folder / name / "deepspeed.json"
        file.write_text(json.dumps(layouts.deepspeed(1, micro, accumulation, **more)))
        run = f"{ranks}_ranks_{stages}_stages"
        rows.append({"config": str(config.source), "deepspeed": str(file), "name": run})
        runs[name] = folder / name / "runs" / run
    (folder / "cases.json").write_text(json.dumps(rows))
    rank_processes.call(ranks, program, [str(folder / "cases.json")], folder, seconds=600)
    return runs


def check(names: list[str], ranks: int, stages: int, folder: Path, micro: int = 2) -> None:
    """Train the cases, and compare losses, norms, weights and metrics with one process; one backward pass for each
    micro-batch."""
    found = train(names, ranks, stages, folder, micro=micro)
    wrong = {}
    for name, run in found.items():
        config = configure(name, folder)
        wanted_losses, wanted_norms, wanted = layouts.plain(config)
        assert min(wanted_norms) > layouts.CLIP, "every step must be clipped"
        losses, norms, weights = layouts.curve(run)
        size = torch.stack([w.norm() for w in wanted.values()]).norm()
        off = torch.stack([(weights[n].double() - w).norm() for n, w in wanted.items()]).norm() / size
        task = build_task(config)
        task.model.load_state_dict(weights, strict=False)
        rows = task.evaluate(task.model.eval(), rank=0, world_size=1, device=torch.device("cpu"))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        (evaluated,) = [line for line in lines if line["kind"] == "eval"]
        metrics = max(abs(evaluated[k] - v) / max(abs(v), 1e-3) for k, v in task.summarize(rows).items())
        errors = (
            max(abs(a / b - 1) for a, b in zip(losses, wanted_losses, strict=True)),
            max(abs(a / b - 1) for a, b in zip(norms, wanted_norms, strict=True)), float(off), metrics,
        )  # fmt: skip
        print(name, *(f"{x:.1e}" for x in errors))
        walks = STEPS * BATCH // (micro * (ranks // stages))
        for rank in range(ranks):
            counts = json.loads((run / f"gradients_{rank}.json").read_text())
            if not counts or set(counts.values()) != {walks}:
                wrong[name, rank] = f"{walks} micro-batches, gradients of parameters: {counts}"
        if not (errors[0] <= 2e-6 and errors[1] <= 1e-5 and errors[2] <= 1e-6 and errors[3] <= 1e-4):
            wrong[name, "errors"] = str(errors)
    assert not wrong


def test_two_stages_train_as_one_process(tmp_path) -> None:
    check(["tied", "fold"], 2, 2, tmp_path)


@pytest.mark.slow
def test_two_copies_of_two_stages_train_as_one_process(tmp_path) -> None:
    check(["llama", "esm"], 4, 2, tmp_path, micro=1)


@pytest.mark.nightly
@pytest.mark.parametrize(("ranks", "stages", "micro"), [(2, 2, 8), (2, 2, 16), (4, 2, 2)])
def test_every_model_trains_as_one_process(ranks, stages, micro, tmp_path) -> None:
    names = [name for name in pipeline_ranks.CASES if name not in ("fold, all stacks", "frozen")]
    check(names, ranks, stages, tmp_path, micro)


@pytest.mark.nightly
def test_three_stages_train_as_one_process(tmp_path) -> None:
    check(["llama", "tied", "esm", "bert", "lora"], 3, 3, tmp_path)


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_on_every_stage(tmp_path) -> None:
    run = train(["llama"], 2, 2, tmp_path, program=pipeline_ranks.skip_steps)["llama"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = [(line["step"], line["what"], len(line["ids"])) for line in lines if line.get("event") == "nonfinite"]
    assert [event[:2] for event in events] == [(2, "loss"), (3, "gradient")]
    assert all(event[2] >= BATCH for event in events)  # the documents of all rows
    state = json.loads((run / f"checkpoints/step_{STEPS:06d}/state.json").read_text())
    assert state["nonfinite"] == 2
    _, _, weights = layouts.curve(run)
    assert all(bool(torch.isfinite(w).all()) for w in weights.values())


@pytest.mark.parametrize("name", pipeline_ranks.CASES)
@pytest.mark.parametrize(
    "stages", [pytest.param(2, marks=pytest.mark.nightly), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_chain_of_stages_is_the_model(name, stages, tmp_path) -> None:
    """Outputs' loss and every gradient in fp64; the parts name every parameter."""
    config = configure(name, tmp_path)
    assert config.train.weights is not None
    weights = safetensors.torch.load_file(config.train.weights)

    def made() -> Any:
        task = build_task(config)
        task.model.load_state_dict(weights, strict=False)
        task.model.double().train()
        return task

    if name == "fold" and stages == 3:
        pytest.skip("two blocks")
    whole = made()
    tasks = [made() for _ in range(stages)]
    parts = whole.pipeline_parts(stages)
    chain = [task.pipeline_stage(stage, stages) for stage, task in enumerate(tasks)]
    assert [tuple(stage.stage_parameters()) for stage in chain] == [part.parameters for part in parts]
    assert {n for part in parts for n in part.parameters} == {n for n, _ in whole.model.named_parameters()}
    for stage, part in zip(chain, parts, strict=True):
        assert sum(p.numel() for p in stage.parameters()) == sum(
            p.numel() for n, p in whole.model.named_parameters() if n in part.parameters
        )
    for step in (0, STEPS - 1):  # the first step of a run may train the stem only
        batches = whole.batches(start_step=step, rank=0, world_size=1, micro_batch_size=3, accumulation_steps=1)
        batch = layouts.in_double(next(batches))
        if name == "fold, all stacks":
            extra = torch.randn(3, 8, batch.aatype.shape[1], 25, generator=torch.Generator().manual_seed(step))
            batch = replace(batch, extra_msa_feat=extra.double(), extra_msa_mask=extra[..., 0] > -1)
        loss, _ = whole.loss(whole.model(batch), batch)
        recycled = None
        passes = chain[0].passes(batch)
        for at in range(passes + 1):
            last = at == passes
            with torch.set_grad_enabled(last):
                states = None
                for number, stage in enumerate(chain):
                    given = batch if last else stage.batch_of_pass(batch, at)
                    states = stage(given, states, recycled if number == 0 else None)
                recycled = None if last else chain[-1].recycle(states, batch)
        found, _ = tasks[-1].loss(states, batch)
        assert float(found) == pytest.approx(float(loss), rel=1e-9)
        whole.model.zero_grad()
        loss.backward()
        for stage in chain:
            stage.zero_grad()
        found.backward()
        gradients: dict[str, Any] = {}
        for stage in chain:
            for n, p in stage.stage_parameters().items():
                if p.grad is not None:
                    gradients[n] = gradients[n] + p.grad if n in gradients else p.grad
        wanted = {n: p.grad for n, p in whole.model.named_parameters() if p.grad is not None}
        largest = max(float(g.abs().max()) for g in wanted.values())
        off = {n: float((gradients[n] - g).abs().max()) / largest for n, g in wanted.items() if float(g.abs().max())}
        assert max(off.values()) < 1e-8  # ESM computes rotary embeddings in fp32


def test_blocks_are_divided_evenly() -> None:
    assert split_evenly([1] * 6, 3) == [range(2), range(2, 4), range(4, 6)]
    assert split_evenly([1, 1, 1, 5], 2) == [range(3), range(3, 4)]
    assert split_evenly([9, 1, 1, 1], 3) == [range(1), range(1, 2), range(2, 4)]
    with pytest.raises(ValueError, match="3 stages, but the model has 2 blocks"):
        split_evenly([1, 1], 3)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_other_zero_stages_are_refused(stage, tmp_path) -> None:
    config = configure("llama", tmp_path)
    file = tmp_path / "other.json"
    file.write_text(json.dumps(layouts.deepspeed(stage, 2, 2)))
    with pytest.raises(ValueError, match=rf"other.json: zero_optimization.stage = {stage}: parallel.pipeline = 2"):
        RunConfig.load(config.source, ["parallel.pipeline=2"], deepspeed=file)


def test_sequence_and_pipeline_are_refused(tmp_path) -> None:
    config = configure("llama", tmp_path)
    with pytest.raises(ValueError, match="sequence = 2 and pipeline = 2 cannot be combined"):
        RunConfig.load(config.source, ["parallel.pipeline=2", "parallel.sequence=2"])


def create_engine(config: RunConfig, task: Any, stage: int = 0) -> None:
    """Create the engine of one of two stages, without other ranks."""
    from ds4sci.train.run import Session

    context = SimpleNamespace(pipeline=PipelineGroup(stage, 2, (0, 1)))
    Session._create_engine(SimpleNamespace(config=config, context=context), task)  # type: ignore[arg-type]


def test_tasks_and_models_that_cannot_be_divided_are_refused(tmp_path) -> None:
    config = layouts.configure("neural_operator", tmp_path)
    with pytest.raises(ValueError, match=r"parallel.pipeline = 2, but the model of the task neural_operator"):
        create_engine(config, build_task(config))
    albert = {"model_type": "albert", "hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2,
              "intermediate_size": 24, "num_hidden_layers": 3, "attention_probs_dropout_prob": 0.0}  # fmt: skip
    config = layouts.configure("masked_lm", tmp_path, model={"config": albert})
    with pytest.raises(ValueError, match=r"parallel.pipeline: AlbertForMaskedLM cannot be divided into stages"):
        create_engine(config, build_task(config))


def test_a_stage_without_weights_to_train_is_refused(tmp_path) -> None:
    config = configure("frozen", tmp_path)
    task = build_task(config)
    for name, p in task.model.named_parameters():
        p.requires_grad_("layer.0" in name)
    with pytest.raises(ValueError, match=r"stage 1 \(blocks 2 to 2\) has no parameters to train"):
        create_engine(config, task, 1)


def test_recomputation_by_the_json_is_refused(tmp_path) -> None:
    config = configure("llama", tmp_path)
    file = tmp_path / "pipe.json"
    file.write_text(json.dumps(layouts.deepspeed(1, 2, 2, pipeline={"activation_checkpoint_interval": 1})))
    with pytest.raises(ValueError, match=r"pipe.json: pipeline.activation_checkpoint_interval = 1"):
        create_engine(replace(config, deepspeed=file), build_task(config))
