"""Report page of complete, partial and damaged run folders. The page must not load anything."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ds4sci.baselines import measure_baselines
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.inference.trained_run import evaluation_files
from ds4sci.report import figures
from ds4sci.report.chain_sections import secondary_class
from ds4sci.report.run_report import write_report
from tests.support.fold_run import make_fold_run


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


class Page(HTMLParser):
    """Checks that every element is closed, and collects images, links and text."""

    VOID = ("meta", "link", "img", "br", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.references += [str(values[key]) for key in ("src", "href", "data", "action") if key in values]
        if tag == "img":
            self.images.append(values)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_page_is_complete_and_self_contained(complete: Path) -> None:
    source = (complete / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert all(reference.startswith("data:") for reference in page.references)
    assert not re.search(r"<script|@import|url\(|<iframe|srcset", source)
    assert "default-src 'none'" in source
    assert len(page.images) == 1 + 1 + 4 * 2 + 1 + 2
    for image in page.images:
        assert image["alt"]
        svg = base64.b64decode(str(image["src"]).removeprefix("data:image/svg+xml;base64,")).decode()
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        for element in root.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:"))
    assert 'class="missing"' not in source


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


def test_traces_break_where_residues_are_missing() -> None:
    ca = np.cumsum(np.full((12, 3), 2.2), axis=0) + np.random.default_rng(0).normal(0, 0.3, (12, 3))
    true, mask = ca.copy(), np.ones(12, dtype=bool)
    mask[5] = False
    true[5] = 0
    picture = figures.svg(figures.traces, ca, true, mask, np.linspace(20, 95, 12), size=(6, 3), panels=(1, 2))
    assert "<image" in picture
    points = np.where(mask[:, None], true, np.nan)
    assert len(figures._strands(points, ["#000000"] * 11, 1.0)) == (11 - 2) * figures.SEGMENTS


def test_curves_pass_through_every_atom() -> None:
    points = np.random.default_rng(0).normal(size=(6, 3))
    strands = figures._strands(points, ["#000000"] * 5, 1.0)
    starts = np.array([ends[0] for _, ends, _, _ in strands])[:: figures.SEGMENTS]
    np.testing.assert_allclose(starts, points[:-1, :2])


@pytest.mark.parametrize(
    ("letters", "expected"), [("0" * 50 + "2" * 50, "α"), ("1" * 40 + "2" * 60, "β"), ("0" * 30 + "1" * 30, "mixed"),
                              ("2" * 90 + "0" * 10, "few")],
)  # fmt: skip
def test_secondary_class(letters: str, expected: str) -> None:
    assert secondary_class(np.array([int(letter) for letter in letters])) == expected
    assert secondary_class(np.array([-1, -1])) == "few"
