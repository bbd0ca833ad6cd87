"""Weights by homology: clusters of known families, and their effect on the loss of a batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ds4sci.cli.main import app
from ds4sci.config.run_file import RunConfig
from ds4sci.data import score_file
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.tasks.build import build_task
from tests.support import layouts
from tests.support.fold_run import CHAINS


def clusters(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["select", "clusters", *map(str, arguments)])


def test_copies_of_a_chain_count_as_one(tmp_path: Path) -> None:
    """Three copies of one chain, two of another and one single chain: each family contributes equally to the loss."""
    config = layouts.configure("token_classification", tmp_path)
    one, two, three = list(ChainSet.open(CHAINS))[:3]
    copies = [one, one, two, one, three, two]
    ChainSet.write(tmp_path / "train.npz", [replace(x, id=f"c{i}") for i, x in enumerate(copies)])
    out = tmp_path / "clusters.npz"
    done = clusters(config.source, "--out", out)
    assert done.exit_code == 0, done.output
    assert "6 samples in 3 clusters, the largest of 3" in done.output
    found = score_file.read(out)
    assert found.scores["cluster_size"].tolist() == [3, 3, 2, 3, 1, 2]
    assert [round(x, 6) for x in found.scores["weight"]] == [0.333333, 0.333333, 0.5, 0.333333, 1.0, 0.5]
    cluster = found.scores["cluster"]
    assert cluster[0] == cluster[1] == cluster[3] != cluster[4]

    weights = {"scores": str(out)}
    made: Any = build_task(layouts.configure("token_classification", tmp_path, data={"weights": weights}))
    plain: Any = build_task(layouts.configure("token_classification", tmp_path, data={"packing": True}))
    position = {"start_step": 0, "rank": 0, "world_size": 1, "micro_batch_size": 3, "accumulation_steps": 1}
    batch, same = next(made.batches(**position)), next(plain.batches(**position))
    assert batch.ids == same.ids
    assert torch.equal(batch.input_ids, same.input_ids)
    factors = found.scores["weight"] / found.scores["weight"].mean()
    flat, before = batch.weights.flatten(), same.weights.flatten()
    for (start, stop), sample in zip(batch.doc_spans.tolist(), batch.samples, strict=True):
        torch.testing.assert_close(flat[start:stop], before[start:stop] * float(factors[sample]))
    assert made.weight(batch) == plain.weight(same)
    output = made.model.double()(batch)
    wanted = (output.losses * batch.weights).sum() / same.weights.sum()
    assert float(made.loss(output, batch)[0]) == pytest.approx(float(wanted), rel=1e-6)
    assert made.fixed_inputs().keys() == {"data.weights", "data.weights.scores"}


def test_records_of_a_language_model(tmp_path: Path) -> None:
    config = layouts.configure("masked_lm", tmp_path)
    rng = np.random.default_rng(0)
    family = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 60))
    others = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 60)) for _ in range(3)]
    (tmp_path / "proteins.fa").write_text(
        "".join(f">p{i}\n{x}\n" for i, x in enumerate([family, others[0], family[:55] + "GGGGG", *others[1:]]))
    )
    out = tmp_path / "clusters.npz"
    assert "5 samples in 4 clusters, the largest of 2" in clusters(config.source, "--out", out).output
    assert score_file.read(out).scores["weight"].tolist() == [0.5, 1.0, 0.5, 1.0, 1.0]
    assert "exists" in str(clusters(config.source, "--out", out).exception)


def test_tasks_without_proteins(tmp_path: Path) -> None:
    for task, message in (
        ("volume_regression", "trains on no sequences"),
        ("neural_operator", "no fixed training samples"),
    ):
        config = layouts.configure(task, tmp_path)
        assert message in str(clusters(config.source, "--out", tmp_path / "x.npz").exception)
    tree = json.loads(layouts.configure("causal_lm", tmp_path).source.read_text())
    (tmp_path / "dna.fa").write_text(">g\n" + "ACGT" * 60 + "\n>h\n" + "GGAT" * 60 + "\n>v\n" + "TTAT" * 60 + "\n")
    tree["data"] |= {"path": str(tmp_path / "dna.fa"), "tokenizer": {"kind": "nucleotide"}, "valid_fraction": 0.3}
    tree["data"].pop("valid")
    file = tmp_path / "dna.json"
    file.write_text(json.dumps(tree))
    assert RunConfig.load(file) is not None
    assert "only proteins are clustered" in str(clusters(file, "--out", tmp_path / "x.npz").exception)
