"""Stages of a run: order, nesting, values and errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ds4sci.config.run_file import RunConfig
from ds4sci.train import listeners
from ds4sci.train.stages import Stages


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def begin(self, stage: str, values: Mapping[str, Any]) -> None:
        self.events.append(("begin", stage, dict(values)))

    def end(self, stage: str, values: Mapping[str, Any]) -> None:
        self.events.append(("end", stage, dict(values)))

    def message(self, key: str, values: Mapping[str, Any]) -> None:
        self.events.append(("message", key, dict(values)))

    def close(self) -> None:
        self.events.append(("close", "", {}))


def test_listeners_hear_stages_in_order_with_their_values() -> None:
    one, two = Recorder(), Recorder()
    stages = Stages(one, two)
    with stages.stage("run", step=3) as end:
        stages.message("note", text="x")
        end["finished"] = True
    stages.close()
    assert one.events == two.events
    assert one.events == [
        ("begin", "run", {"step": 3}),
        ("message", "note", {"text": "x"}),
        ("end", "run", {"finished": True}),
        ("close", "", {}),
    ]


def test_an_exception_ends_the_stages_and_is_named() -> None:
    recorder = Recorder()
    with pytest.raises(KeyError), Stages(recorder).stage("run"), Stages(recorder).stage("train"):
        raise KeyError("x")
    assert recorder.events[2:] == [("end", "train", {"error": "KeyError"}), ("end", "run", {"error": "KeyError"})]


def test_a_run_reports_its_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ds4sci.train.run import train

    recorder = Recorder()
    monkeypatch.setattr(listeners, "of_rank", lambda *_: [recorder])
    overrides = [
        "train.steps=3", "train.evaluate_every=2", "train.save_every=1", f"train.output={str(tmp_path)!r}",
        "model.branch=[8]", "model.trunk=[8]", "model.latent=4", "data.points=8", "data.boundary_points=4",
        "data.valid_functions=2",
    ]  # fmt: skip
    train(RunConfig.load("configs/operator/reaction_diffusion.toml", overrides))
    names = [(kind, name, values.get("step")) for kind, name, values in recorder.events]
    assert names == [
        ("begin", "init", None), ("end", "init", None), ("begin", "run", None),
        ("begin", "train", 0), ("begin", "save", 1), ("end", "save", None), ("end", "train", 2),
        ("begin", "eval", 2), ("message", "evaluated", None), ("end", "eval", None),
        ("begin", "save", 2), ("end", "save", None),
        ("begin", "train", 2), ("end", "train", 3),
        ("begin", "eval", 3), ("message", "evaluated", None), ("end", "eval", None),
        ("begin", "save", 3), ("end", "save", None), ("end", "run", None), ("close", "", None),
    ]  # fmt: skip
    assert recorder.events[8][2] == {"examples": 2}
    assert recorder.events[9][2]["score"] < 0
