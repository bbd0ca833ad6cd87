"""The fold task on DeepSpeed: ZeRO stages agree, a tiny set is memorised, weights are loaded for fine-tuning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.synthetic import synthetic_chain
from tests.support import rank_processes
from tests.support.fold_run import CHAINS, CONFIG, SMALL
from tests.support.run_files import digest


def arrange(folder: Path, stage: int, *, lr: float = 1e-3) -> list[str]:
    """Write two small chain sets and a DeepSpeed JSON into ``folder``; return the arguments of a run of a small
    model."""
    records = sorted(ChainSet.open(CHAINS), key=lambda record: len(record.sequence))
    ChainSet.write(folder / "train.npz", records[:4])
    ChainSet.write(folder / "valid.npz", records[4:8])
    tree = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": lr, "torch_adam": True}},
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    (folder / "ds.json").write_text(json.dumps(tree))
    small = [setting for setting in SMALL if not setting.startswith("train.")]
    data = [f"data.train={folder / 'train.npz'}", f"data.valid={folder / 'valid.npz'}", "data.plan.max_recycling=1"]
    plan = "data.plan.phases=[{crops=[24]}]"
    no_stem_phase = "model.stem.stem_only_fraction=0"
    return [
        "--config",
        str(CONFIG),
        "--deepspeed_config",
        "ds.json",
        *small,
        *data,
        plan,
        no_stem_phase,
        "train.log_every=1",
    ]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_zero_3_trains_as_zero_1(tmp_path: Path) -> None:
    """Modules pass the parameters of their children to kernels: ZeRO-3 must gather them, also in recycling passes."""
    for stage in (1, 3):
        rank_processes.run(2, [*arrange(tmp_path, stage), "train.steps=3", f"train.name=zero{stage}"], tmp_path)
    first, third = (losses(tmp_path / f"runs/zero{stage}") for stage in (1, 3))
    assert len(first) == 3
    assert third == pytest.approx(first, rel=1e-5)


def test_a_run_with_resampled_alignments_resumes_exactly(tmp_path: Path) -> None:
    """A run that is resumed from the middle has the bits of the whole one."""
    features = "{msa_input='msa', max_clusters=3, max_extra=5, masked_msa_probability=0.15, resample_msa=%s}"
    arguments = [
        *arrange(tmp_path, 1),
        "model.extra_msa={blocks=1, c_e=8}",
        "data.plan.max_recycling=2",
        "data.evaluation_recycling=1",
        "train.steps=4",
        "train.save_every=2",
    ]
    records = [synthetic_chain(26 + 3 * seed, 15, np.random.default_rng(seed)) for seed in range(6)]
    ChainSet.write(tmp_path / "train.npz", records[:5])
    ChainSet.write(tmp_path / "valid.npz", records[5:])

    def train(name: str, *more: str, resample: str = "true") -> Path:
        given = [*arguments, f"data.features={features % resample}", f"train.name={name}", *more]
        rank_processes.run(2, given, tmp_path)
        return tmp_path / "runs" / name

    whole = train("whole", "data.workers=1")
    fixed = train("fixed", resample="false")
    assert [a != b for a, b in zip(losses(whole), losses(fixed), strict=True)].count(True) > 1
    resumed = tmp_path / "runs" / "resumed"
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step_000004")
    (resumed / "checkpoints" / "latest").write_text("step_000002\n")
    (resumed / "checkpoints" / "best").unlink()
    rank_processes.run(2, ["--resume", str(resumed)], tmp_path)
    weights = [run / "checkpoints" / "step_000004" / "model.safetensors" for run in (whole, resumed)]
    assert len({digest(file) for file in weights}) == 1
    assert losses(resumed)[-2:] == losses(whole)[-2:]


def test_zero_3_is_refused_with_a_stem_only_phase(tmp_path: Path) -> None:
    arguments = [*arrange(tmp_path, 3), "train.steps=3", "train.name=stem", "model.stem.stem_only_fraction=0.5"]
    ended = rank_processes.run(2, arguments, tmp_path, code=2)
    assert "model.stem.stem_only_fraction=0" in ended.output


def test_the_stem_only_phase_ends_at_its_fraction(tmp_path: Path) -> None:
    arguments = [*arrange(tmp_path, 1), "train.steps=4", "train.name=stem", "model.stem.stem_only_fraction=0.5"]
    rank_processes.run(2, arguments, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs/stem/metrics.jsonl").read_text().splitlines()]
    terms = [set(line["loss_terms"]) for line in lines if line["kind"] == "train"]
    assert terms[:2] == [{"initial_frames_fape", "secondary"}] * 2
    assert all("backbone_fape" in names for names in terms[2:])


@pytest.mark.slow
def test_four_crops_are_memorised(tmp_path: Path) -> None:
    arguments = [
        *arrange(tmp_path, 1, lr=3e-3),
        "train.steps=150",
        "train.name=memorised",
        "loss.geometry_from_progress=0",
    ]
    rank_processes.run(2, arguments, tmp_path)
    loss = losses(tmp_path / "runs/memorised")
    assert sum(loss[-10:]) < 0.75 * sum(loss[:10])


def test_fine_tuning_starts_from_the_weights_of_a_run(tmp_path: Path) -> None:
    arguments = [*arrange(tmp_path, 1), "train.steps=1"]
    rank_processes.run(2, [*arguments, "train.name=first"], tmp_path)
    (tmp_path / "ds.json").write_text((tmp_path / "ds.json").read_text().replace("0.001", "0.0"))
    rank_processes.run(2, [*arguments, "train.name=second", "train.weights=runs/first"], tmp_path)
    first, second = (
        load_file(tmp_path / f"runs/{name}/checkpoints/step_000001/model.safetensors") for name in ("first", "second")
    )
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
