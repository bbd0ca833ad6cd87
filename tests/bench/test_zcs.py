"""The derivative benchmark compares the same step with every method, and counts saved tensors."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from ds4sci.bench import zcs
from ds4sci.cli.main import app


@pytest.mark.parametrize("pde", [*zcs.ORDERS, "derivative"])
def test_all_methods_take_the_same_step(pde: str) -> None:
    order = zcs.ORDERS.get(pde, 3)
    found = {}
    for method in zcs.METHODS:
        step = zcs.step_of(zcs.Case(pde, 3, 16, order), method)
        loss = step()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in step.parameters]
        gradient = torch.cat([one.flatten() for one in gradients])
        found[method] = loss, gradient
    loss, gradient = found["func_loop"]
    for method, (other, slope) in found.items():
        torch.testing.assert_close(other, loss, rtol=1e-4, atol=0.0, msg=method)
        assert float((slope - gradient).norm() / gradient.norm()) < 1e-4, method


def test_saved_bytes_are_those_of_the_graph() -> None:
    """(p·x)² saves x and p·x. The parameter p is not counted."""

    class Step:
        x = torch.ones(1000, dtype=torch.float32)
        parameter = torch.ones(1000, requires_grad=True)
        parameters = (parameter,)

        def loss_of(self) -> torch.Tensor:
            self.made = self.parameter * self.x  # saves both factors; x has 4000 bytes
            return (self.made * self.made).sum()  # saves its factor, 4000 bytes

    assert zcs.saved_bytes(Step()) == 8000


def test_zcs_saves_the_same_for_more_functions() -> None:
    saved = {
        method: [zcs.saved_bytes(zcs.step_of(zcs.Case("burgers", m, 64, 2), method)) for m in (2, 16)]
        for method in zcs.METHODS
    }
    growth = {method: many / few for method, (few, many) in saved.items()}
    assert growth["func_loop"] > 6
    assert growth["data_vect"] > 6
    assert growth["zcs_reverse"] < 1.3
    assert growth["zcs_forward"] < 1.3


@pytest.mark.nightly
def test_command_writes_rows_and_a_plot(tmp_path) -> None:
    out = tmp_path / "zcs.json"
    done = CliRunner().invoke(app, ["bench", "zcs", "--quick", "--json", str(out)])
    assert done.exit_code == 0, done.output
    rows = json.loads(out.read_text())["rows"]
    assert {"pde", "method", "functions", "points", "order", "saved_bytes", "peak_bytes", "seconds"} <= set(rows[0])
    assert {row["method"] for row in rows} >= set(zcs.METHODS)
    assert all(row["seconds"] > 0 and row["saved_bytes"] > 0 for row in rows)
    assert out.with_suffix(".png").stat().st_size > 10_000
