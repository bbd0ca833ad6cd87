"""Efficiencies by hand, the page, and refusals of logs that do not belong together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ds4sci.config.run_file import RunConfig
from ds4sci.scaling import page
from ds4sci.scaling.batch_plan import plan
from ds4sci.scaling.efficiency import rows
from ds4sci.scaling.logs import Repeat, ScalingLog, fingerprint, read_logs, step_seconds
from ds4sci.scaling.measure import MeasurementPlan
from tests.cli.test_main import call

ROOT = Path(__file__).parents[2]
BURGERS = ROOT / "configs" / "benchmarks" / "operator.toml"
MACHINE = {"cpu": "test", "cores": 2, "gpus": [], "commit": "abc", "versions": {}}


def log(mode: str, ranks: int, seconds: float, batch: int) -> ScalingLog:
    """A log with three repeats around ``seconds``."""
    repeats = [Repeat([0.9 * s, s, 1.2 * s], [0.1 * s] * 3, 0.5) for s in (seconds, 0.9 * seconds, 1.2 * seconds)]
    return ScalingLog(
        mode, "tiny", "f00d", ranks, batch, 2, 1, repeats, 100.0, 1, 2, min(ranks, 2), 1e9 * batch, 1e10, "fp32",
        MACHINE,
    )  # fmt: skip


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Folder with strong and weak logs of 1, 2 and 4 ranks on two cores."""
    for ranks, strong, weak in ((1, 8.0, 2.0), (2, 5.0, 2.5), (4, 4.0, 5.0)):
        log("strong", ranks, strong, 8).save(tmp_path / f"strong_{ranks}.json")
        log("weak", ranks, weak, 2 * ranks).save(tmp_path / f"weak_{ranks}.json")
    return tmp_path


def test_efficiency_by_hand(logs: Path) -> None:
    found = {(one.mode, one.ranks): one for one in rows(read_logs([logs]))}
    assert found["strong", 2].efficiency == pytest.approx(8 / (5 * 2))
    assert found["strong", 2].speed_up == pytest.approx(1.6)
    assert found["weak", 2].efficiency == pytest.approx(2 / 2.5)
    assert found["weak", 2].speed_up == pytest.approx(1.6)
    assert found["strong", 1].utilization == pytest.approx(8e9 / (1e10 * 8))
    assert found["strong", 2].utilization == pytest.approx(8e9 / (1e10 * 2 * 5))
    assert found["strong", 2].communication == pytest.approx(0.1)
    assert found["strong", 2].node_hours == pytest.approx(1e6 / 8 * 5 / 3600)
    assert found["strong", 4].node_hours == pytest.approx(2 * 1e6 / 8 * 4 / 3600), "two nodes of two cores"
    assert [key for key, one in found.items() if one.is_oversubscribed] == [("strong", 4), ("weak", 4)]


def test_report_writes_a_self_contained_page(logs: Path) -> None:
    assert call("scaling", "report", str(logs), "--json", str(logs / "figures.txt")) == 0
    assert json.loads((logs / "figures.txt").read_text())[0]["mode"] == "strong"
    html = (logs / "scaling.html").read_text()
    assert "4 (oversubscribed)" in html
    assert "80.0%" in html
    assert html.count("data:image/svg+xml") == 2
    assert "http" not in html.replace("http-equiv", "").split("<img")[0]


def test_logs_of_another_kind_are_refused(logs: Path) -> None:
    def refused(match: str, *paths: Path) -> None:
        with pytest.raises(ValueError, match=match):
            read_logs(paths or [logs])

    other = logs / "z_other.json"
    replace(log("weak", 8, 5.0, 16), fingerprint="beef", name="another").save(other)
    refused(r"other\.json: a log of another run \(another.*strong_1")
    replace(log("weak", 8, 5.0, 16), machine=MACHINE | {"cpu": "faster"}).save(other)
    refused(r"other\.json: measured on another machine.*cpu: 'faster'")
    log("weak", 2, 5.0, 4).save(other)
    refused(r"z_other\.json: weak scaling on 2 ranks is in .*weak_2\.json already")
    other.write_text("{")
    refused(r"other\.json: not JSON")
    other.write_text('{"step": 1}')
    refused(r"other\.json: not a scaling log")
    tree = json.loads((logs / "weak_1.json").read_text())
    other.write_text(json.dumps(tree | {"repeats": []}))
    refused(r"other\.json: damaged scaling log: no steps were timed")
    other.write_text(json.dumps({key: value for key, value in tree.items() if key != "batch"}))
    refused(r"other\.json: damaged scaling log: .*batch")
    refused(r"absent: No such file", logs / "absent")
    (logs / "empty").mkdir()
    refused(r"empty: no logs", logs / "empty")


def test_settings_that_runs_differ_in_do_not_change_the_fingerprint() -> None:
    one = RunConfig.load(BURGERS).resolved()
    same = RunConfig.load(BURGERS, ["train.steps=7", "seed=3"]).resolved()
    other = RunConfig.load(BURGERS, ["data.points=400"]).resolved()
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_step_times_leave_out_warm_up_and_evaluations() -> None:
    times = ((1, 9.0), (2, 11.0), (4, 13.0), (6, 20.0), (7, 22.0))
    train = [{"step": step, "seconds": time, "communication_seconds": 0.1} for step, time in times]
    assert step_seconds(train, [{"step": 4}], 2) == ([1.0, 2.0], [0.1, 0.1])
    assert step_seconds(train, [], 99) == ([], [])


def test_batches_of_strong_and_weak_scaling() -> None:
    config = RunConfig.load(BURGERS)  # batch 64, micro-batches of 32
    made = {(m, r): plan(config, m, r) for m in ("strong", "weak") for r in (1, 2, 4)}
    assert [(made["strong", r].micro, made["strong", r].accumulation) for r in (1, 2, 4)] == [(32, 2), (32, 1), (16, 1)]
    assert [made["weak", r].batch for r in (1, 2, 4)] == [32, 64, 128]
    with pytest.raises(ValueError, match=r"--ranks 3: a global batch of 64 .* 3 data-parallel"):
        plan(config, "strong", 3)


def test_settings_of_the_command_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"train\.steps itself"):
        MeasurementPlan(BURGERS, ("train.steps=3",), (1,), Path("x"))
    with pytest.raises(ValueError, match="--ranks 1,1"):
        MeasurementPlan(BURGERS, (), (1, 1), Path("x"))
    assert call("scaling", "run", str(BURGERS), "--ranks", "1,x") == 2
    assert "--ranks 1,x: expected whole numbers" in capsys.readouterr().err


def test_text_names_every_mode(logs: Path) -> None:
    text = page.as_text(read_logs([logs]))
    assert text.count("strong") == 3 == text.count("weak")
