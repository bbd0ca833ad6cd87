"""Report page of complete, partial and damaged run folders. The page must not load anything."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from ds4sci.baselines import measure_baselines
from ds4sci.chemistry.residue_constants import ATOM37
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.inference.trained_run import evaluation_files
from ds4sci.report.chain_sections import secondary_class
from ds4sci.report.run_report import write_report
from ds4sci.report.structure_view import view_scripts
from tests.support.fold_run import make_fold_run
from tests.support.html_page import Page
from tests.support.view_data import unpack_atoms


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that the report shows."""
    run = make_fold_run(tmp_path_factory.mktemp("report"), chains=8)
    folder = run.parents[1]
    evaluate_run(run, files={"chains": folder / "valid.npz"}, show=False)
    evaluate_run(run, files={"chains": folder / "valid.npz"}, which="untrained", show=False)
    baselines = measure_baselines(folder / "train.npz", folder / "valid.npz")
    evaluation_files(run)["baselines"].write_text(json.dumps(baselines))
    write_report(run)
    return run


def read(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_page_is_complete_and_self_contained(complete: Path) -> None:
    source = (complete / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    page.check_self_contained()
    assert page.scripts == view_scripts([source])
    assert len(page.images) == 1 + 1 + 1 + 2
    for image in page.images:
        assert image["alt"]
        svg = base64.b64decode(str(image["src"]).removeprefix("data:image/svg+xml;base64,")).decode()
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        for element in root.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:"))
    assert source.count('<p class="missing">') == 1  # without JavaScript
    assert len(source) < 3_000_000


def test_page_has_the_scores(complete: Path) -> None:
    files = evaluation_files(complete)
    text = read(complete).text
    means = json.loads(files["held_out"].read_text())["mean"]
    assert f"{means['lddt_ca']:.3f}" in text
    assert f"{json.loads(files['untrained'].read_text())['mean']['tm_score']:.3f}" in text
    for entry in json.loads(files["baselines"].read_text())["baselines"].values():
        assert entry["label"] in text
        assert f"{entry['mean']['lddt_ca']:.3f}" in text
    # an untrained model is worse than the baselines
    assert text.count("✗ lower or equal lDDT-Cα") >= 2
    for words in ("Best: ", "Median: ", "Worst: ", "ds4sci eval --run", "git checkout", "zero_optimization", "c_outer"):
        assert words in text
    rows = sorted(json.loads(files["held_out"].read_text())["per_chain"], key=lambda row: row["lddt_ca"])
    assert f"Worst: {rows[0]['id']}" in text
    assert f"Best: {rows[-1]['id']}" in text


def test_chains_are_shown_superposed_on_the_true_ones(complete: Path) -> None:
    shown = read(complete).data["view-data"]["structures"]
    rows = sorted(
        json.loads(evaluation_files(complete)["held_out"].read_text())["per_chain"], key=lambda r: r["lddt_ca"]
    )
    assert [one["name"].split(": ")[0] for one in shown] == ["Best", "Upper quartile", "Median", "Worst"]
    chains = ChainSet.open(complete.parents[1] / "valid.npz")
    for one in shown:
        record = next(record for record in chains if one["name"].endswith(f": {record.id}"))
        row = next(row for row in rows if row["id"] == record.id)
        assert one["sequence"] == record.sequence
        assert [len(one["maps"]), one["maps"][0]["side"]] == [2, len(record.sequence)]
        predicted, true = (unpack_atoms(one[key], len(record.sequence)) for key in ("prediction", "truth"))
        truth_known = record.atom_mask[:, [0, 1, 2, 4]].astype(bool)
        np.testing.assert_array_equal(np.isfinite(true).all(-1)[:, [0, 1, 2, 4]], truth_known)
        # a rigid motion of the true chain, with the TM-score of the evaluation where it lies
        known = truth_known[:, 1]
        moved, original = true[known, 1], record.atom_positions[known, 1]
        np.testing.assert_allclose(pdist(moved), pdist(original), atol=0.05)
        d0 = max(1.24 * (len(known) - 15) ** (1 / 3) - 1.8, 0.5)
        apart = np.linalg.norm(predicted[known, 1] - moved, axis=-1)
        assert np.mean(1 / (1 + (apart / d0) ** 2)) * known.mean() == pytest.approx(row["tm_score"], abs=0.01)


def test_predictions_of_older_versions_are_shown_as_traces(complete: Path, tmp_path: Path) -> None:
    """They have Cα atoms only and no sequence."""
    run = shutil.copytree(complete, tmp_path / "run")
    path = evaluation_files(run)["predictions"]
    with np.load(path, allow_pickle=False) as arrays:
        old = {key: arrays[key] for key in arrays.files if not key.endswith(("backbone", "sequence"))}
    np.savez_compressed(path, **old)
    write_report(run)
    for one in read(run).data["view-data"]["structures"]:
        assert set(one["sequence"]) == {"X"}
        atoms = unpack_atoms(one["prediction"], len(one["sequence"]))
        assert np.isfinite(atoms).all(axis=(0, 2)).tolist() == [name == "CA" for name in ATOM37]


def test_report_is_deterministic(complete: Path) -> None:
    before = (complete / "report.html").read_bytes()
    assert write_report(complete).read_bytes() == before


MISSING = {
    "evaluations/held_out.json": "has not been scored on held-out chains yet",
    "evaluations/untrained.json": "The untrained model has not been scored",
    "evaluations/baselines.json": "The baselines have not been measured",
    "evaluations/predictions.npz": "There are no saved predictions",
    "metrics.jsonl": "no training step yet",
    "machine.json": "machine.json is missing",
    "config.json": "config.json is missing",
}


@pytest.mark.parametrize("gone", [["evaluations/held_out.json"], list(MISSING)[1:-1], ["config.json"]], ids=len)
def test_missing_file_has_a_notice(complete: Path, tmp_path: Path, gone: list[str]) -> None:
    run = shutil.copytree(complete, tmp_path / "run")
    for name in gone:
        (run / name).unlink()
    write_report(run)
    text = read(run).text
    for name, words in MISSING.items():
        # without scores the predictions are not shown
        if "evaluations/held_out.json" in gone and name.endswith("predictions.npz"):
            continue
        assert (words in text) == (name in gone), name


def test_run_with_one_step(complete: Path, tmp_path: Path) -> None:
    run = tmp_path / "fresh"
    run.mkdir()
    shutil.copy(complete / "config.json", run)
    lines = (complete / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(lines[0] + "\n" + lines[1][:40])  # the run was killed while writing
    write_report(run)
    assert len(read(run).images) == 1
    with pytest.raises(ValueError, match="not a run folder"):
        write_report(tmp_path)


def test_damaged_files_are_listed(complete: Path, tmp_path: Path) -> None:
    run = shutil.copytree(complete, tmp_path / "run")
    files = evaluation_files(run)
    files["baselines"].write_text("{")
    files["predictions"].write_bytes(files["predictions"].read_bytes()[:500])
    (run / "checkpoints" / "best").write_text("step_000300\n")
    write_report(run)
    text = read(run).text
    assert "Unreadable files" in text
    assert "baselines.json" in text
    assert "predictions.npz" in text
    assert "best checkpoint is now step 300" in text


def test_names_are_escaped_and_nan_is_accepted(complete: Path, tmp_path: Path) -> None:
    run = shutil.copytree(complete, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    evaluation_files(run)["held_out"].unlink()  # so that only the curves are drawn
    config["train"]["name"] = "<script>alert(1)</script>"
    (run / "config.json").write_text(json.dumps(config))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[2] |= {"loss": "nan", "loss_terms": dict.fromkeys(lines[2]["loss_terms"], "nan")}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in source
    assert "alert(1)" in Page(source).text


@pytest.mark.parametrize(
    ("letters", "expected"), [("0" * 50 + "2" * 50, "α"), ("1" * 40 + "2" * 60, "β"), ("0" * 30 + "1" * 30, "mixed"),
                              ("2" * 90 + "0" * 10, "few")],
)  # fmt: skip
def test_secondary_class(letters: str, expected: str) -> None:
    assert secondary_class(np.array([int(letter) for letter in letters])) == expected
    assert secondary_class(np.array([-1, -1])) == "few"
