"""Benchmark of staging: rates of every method, beside the plain copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ds4sci.bench import staging
from ds4sci.cli.main import app
from ds4sci.machine import page_cache


def test_staging_is_compared_with_the_faster_plain_copy(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    folders = ["--source", str(tmp_path / "source"), "--to", str(tmp_path / "target")]
    done = CliRunner().invoke(app, ["bench", "staging", "--quick", "--json", str(tmp_path / "out.json"), *folders])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out.json").read_text())
    rows = {row[0]: row for row in result["rows"]}
    assert len(rows) == 4
    assert all(row[1] > 0 for row in rows.values())
    plain = [row[3] for name, row in rows.items() if name not in (staging.STAGED, staging.TWO_PASSES)]
    assert max(plain) == 100
    fastest = max(row[1] for row in rows.values() if row[3] in plain)
    assert rows[staging.STAGED][3] == pytest.approx(100 * rows[staging.STAGED][1] / fastest)
    assert not list((tmp_path / "source").iterdir())
    assert not list((tmp_path / "target").iterdir())


def test_every_method_copies_every_file(tmp_path: Path) -> None:
    size = staging.write_dataset(tmp_path / "random-1", 1000, 3)
    assert size == 3000
    page_cache.drop([tmp_path / "random-1"])
    for number, method in enumerate((staging.plain_copy, staging.two_passes)):
        target = tmp_path / str(number)
        method(tmp_path / "random-1", target, 2)
        assert {p.name: p.read_bytes() for p in target.iterdir()} == {
            p.name: p.read_bytes() for p in (tmp_path / "random-1").iterdir()
        }
