"""The page of predicted structures in headless Chromium: what is drawn, what selects, console, network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ds4sci.report import prediction_page
from ds4sci.report.structure_view import view_scripts
from tests.support.predicted_folder import as_prediction, real_chain, real_complex, write_folder

pytestmark = pytest.mark.nightly

DRIVER = Path(__file__).with_name("drive_view.js")


OF_THE_BROWSER = re.compile(r"https?://[\w.-]*\b(google|googleapis|gvt1)\.com/")
"""Addresses that Chromium asks of itself: time, updates."""


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium here; Debian: apt-get install chromium")


def drive(page: Path, folder: Path, *flags: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """Result of the driver on a page, messages of the console, and http(s) addresses that were requested."""
    net_log = folder / "net.json"
    command = [
        browser(), "--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
        "--disable-default-apps", f"--user-data-dir={folder / 'profile'}", f"--log-net-log={net_log}",
        "--enable-logging=stderr", "--virtual-time-budget=30000", *flags, "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-3000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    requested = re.findall(r'"url":"((?:https?|wss?):[^"]*)"', net_log.read_text(encoding="utf-8"))
    return json.loads(html.unescape(found[1])), console, [url for url in requested if not OF_THE_BROWSER.match(url)]


def angstrom(readout: str) -> float:
    """The one distance in a text."""
    (number,) = re.findall(r"([\d.]+) Å", readout)
    return float(number)


@pytest.fixture
def with_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is among the scripts that the policy of the page allows."""
    monkeypatch.setattr(
        prediction_page, "view_scripts", lambda body: [*view_scripts(body), DRIVER.read_text(encoding="utf-8")]
    )


@pytest.fixture
def page(tmp_path: Path, with_driver: None) -> Path:
    """Two structures with PAE, and the driver."""
    names = ["</script><b>ubiquitin", "second one"]
    chains = [
        as_prediction(real_chain(), names[0], with_pae=True),
        as_prediction(real_chain("1a8q"), names[1], with_pae=True),
    ]
    write_folder(tmp_path / "out", chains)
    return prediction_page.write_prediction_page(tmp_path / "out")


@pytest.mark.parametrize(
    "flags",
    [["--window-size=1280,1400"], ["--window-size=500,1400", "--blink-settings=preferredColorScheme=0"]],
    ids=["wide", "narrow, dark"],
)
def test_the_page_in_a_browser(page: Path, tmp_path: Path, flags: list[str]) -> None:
    result, console, requested = drive(page, tmp_path, *flags)
    assert result["errors"] == []
    assert [line for line in console if "GPU stall due to ReadPixels" not in line] == []  # of the test's own reading
    assert requested == []
    assert result["resources"] == []
    assert not result["wide"], "the page scrolls sideways"
    steps = {step["name"]: step for step in result["steps"]}
    pae = as_prediction(real_chain(), "x", with_pae=True).pae
    assert pae is not None
    start = steps["start"]
    assert (start["title"], start["selection"]) == ("</script><b>ubiquitin", "")
    assert start["map"] == "predicted aligned error"
    assert start["blue"] > 0.01, "the structure is not drawn in the colours of the confidence"
    assert start["magenta"] == start["magenta_in_map"] == 0
    # 76 residues: the horizontal axis from 0.105 to 0.205 is residue 8 to 16, the vertical axis 46 to 54
    assert steps["hover"]["readout"].startswith("scored residue 8, aligned residue 46: predicted aligned error ")
    assert angstrom(steps["hover"]["readout"]) == pytest.approx(pae[45, 7], abs=0.12)
    chosen = steps["map"]
    assert chosen["selection"] == "8-16, 46-54"
    assert "Mean predicted aligned error: " in chosen["readout"]
    assert angstrom(chosen["readout"]) == pytest.approx(pae[45:54, 7:16].mean(), abs=0.12)
    assert min(chosen[key] for key in ("magenta", "magenta_in_map", "magenta_in_plot")) > 0.001
    assert chosen["blue"] < start["blue"] / 2, "what is not selected fades"
    assert steps["plot"]["selection"] == "24-31"
    assert steps["plot"]["magenta"] > 0.001
    assert steps["clear"]["selection"] == ""
    assert steps["clear"]["blue"] == pytest.approx(start["blue"], rel=0.02)
    assert steps["typed"]["selection"] == "60-70, 3"
    assert (steps["beyond"]["valid"], steps["beyond"]["readout"]) == (False, steps["typed"]["readout"])
    found = [residue for residue in result["clicked"] if residue.isdigit()]
    assert len(found) >= 15, "clicks on the structure select residues"
    assert len(set(found)) > 5
    assert steps["atoms"]["blue"] > start["blue"] > steps["trace"]["blue"] > 0.005
    assert steps["second map"]["map"] == "expected Cβ–Cβ distance"
    second = steps["second structure"]
    assert (second["title"], second["links"][0]) == ("second one", "second_one.cif")
    assert second["blue"] > 0.01


def test_a_complex_in_a_browser(tmp_path: Path, with_driver: None) -> None:
    """Two chains of 70 residues, counted through: the words say which chain a residue is of."""
    prediction = as_prediction(real_complex(), "dimer", with_pae=True)
    write_folder(tmp_path / "out", [prediction])
    result, console, _ = drive(prediction_page.write_prediction_page(tmp_path / "out"), tmp_path)
    assert result["errors"] == []
    assert [line for line in console if "GPU stall due to ReadPixels" not in line] == []
    steps = {step["name"]: step for step in result["steps"]}
    words = "scored residue 15 (15 of chain A), aligned residue 85 (15 of chain B): predicted aligned error "
    assert steps["hover"]["readout"].startswith(words)
    assert prediction.pae is not None
    assert angstrom(steps["hover"]["readout"]) == pytest.approx(prediction.pae[84, 14], abs=0.12)
    assert steps["map"]["selection"] == "15-29, 85-99"
    assert steps["start"]["blue"] > 0.003


def test_a_browser_without_webgl(page: Path, tmp_path: Path) -> None:
    """The plots, selection and links work."""
    result, _, _ = drive(page, tmp_path, "--disable-3d-apis")
    assert result["errors"] == []
    steps = {step["name"]: step for step in result["steps"]}
    assert "no WebGL" in steps["start"]["notice"]
    assert steps["map"]["selection"] == "8-16, 46-54"
    assert steps["map"]["magenta_in_map"] > 0.001
    assert steps["second structure"]["title"] == "second one"
