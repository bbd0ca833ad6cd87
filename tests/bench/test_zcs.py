"""The benchmark of derivatives compares the same step by every way, and counts what a graph keeps."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from ds4sci.bench import zcs
from ds4sci.cli.main import app


@pytest.mark.parametrize("pde", [*zcs.ORDERS, "derivative"])
def test_every_way_takes_the_same_step(pde: str) -> None:
    order = zcs.ORDERS.get(pde, 3)
    found = {}
    for way in zcs.WAYS:
        step = zcs.step_of(zcs.Case(pde, 3, 16, order), way)
        loss = step()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in step.parameters]
        gradient = torch.cat([one.flatten() for one in gradients])
        found[way] = loss, gradient
    loss, gradient = found["func_loop"]
    for way, (other, slope) in found.items():
        torch.testing.assert_close(other, loss, rtol=1e-4, atol=0.0, msg=way)
        assert float((slope - gradient).norm() / gradient.norm()) < 1e-4, way


def test_bytes_kept_are_those_of_the_graph() -> None:
    """x·x·x keeps x and x·x; a parameter is not counted."""

    class Step:
        x = torch.ones(1000, dtype=torch.float32)
        parameter = torch.ones(1000, requires_grad=True)
        parameters = (parameter,)

        def loss_of(self) -> torch.Tensor:
            self.made = self.parameter * self.x  # keeps both; x is 4000 bytes
            return (self.made * self.made).sum()  # keeps its factor, 4000 bytes

    assert zcs.saved_bytes(Step()) == 8000


def test_what_is_kept_does_not_grow_with_functions_by_zero_shift() -> None:
    kept = {
        way: [zcs.saved_bytes(zcs.step_of(zcs.Case("burgers", m, 64, 2), way)) for m in (2, 16)] for way in zcs.WAYS
    }
    growth = {way: many / few for way, (few, many) in kept.items()}
    assert growth["func_loop"] > 6
    assert growth["data_vect"] > 6
    assert growth["zcs_reverse"] < 1.3
    assert growth["zcs_forward"] < 1.3


@pytest.mark.slow
def test_the_command_writes_rows_and_a_picture(tmp_path) -> None:
    out = tmp_path / "zcs.json"
    done = CliRunner().invoke(app, ["bench", "zcs", "--quick", "--json", str(out)])
    assert done.exit_code == 0, done.output
    rows = json.loads(out.read_text())["rows"]
    assert {"pde", "method", "functions", "points", "order", "saved_bytes", "peak_bytes", "seconds"} <= set(rows[0])
    assert {row["method"] for row in rows} >= set(zcs.WAYS)
    assert all(row["seconds"] > 0 and row["saved_bytes"] > 0 for row in rows)
    assert out.with_suffix(".png").stat().st_size > 10_000
