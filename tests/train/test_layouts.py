"""Checkpoints that are saved on one layout and resumed on another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoint_layouts import LAYOUTS, OPTIMIZERS, VARIANTS, Grid

NAMED = {layout.name: layout for layout in LAYOUTS}


def check(variant: str, folder: Path, names: dict[str, tuple[str, ...]]) -> None:
    """Save on each key of ``names`` and resume on its values: all is restored, and losses and bits are equal."""
    grid = Grid(variant, folder)
    grid.save([NAMED[name] for name in names])
    found = grid.resume([(NAMED[a], NAMED[b]) for a, targets in names.items() for b in targets])
    wrong = {pair: differences for pair, differences in found.items() if differences}
    assert not wrong


RING = {
    "1 ranks, stage 0": ("1 ranks, stage 0", "2 ranks, stage 3"),
    "2 ranks, stage 3": ("2 ranks, stage 1",),
    "2 ranks, stage 1": ("1 ranks, stage 0", "2 ranks, stage 1"),
}
"""Without ZeRO, in a flat buffer, and divided parameter by parameter."""


@pytest.mark.nightly
@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - OPTIMIZERS.keys()))
def test_every_layout_resumes_every_other(variant, tmp_path) -> None:
    check(variant, tmp_path, {one: tuple(NAMED) for one in NAMED})


@pytest.mark.nightly
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_of_other_optimizers(optimizer, tmp_path) -> None:
    check(optimizer, tmp_path, RING)


def test_layouts_resume_each_other(tmp_path) -> None:
    check("tied", tmp_path, RING)


@pytest.mark.nightly
@pytest.mark.parametrize("variant", ["LoRA", "two groups", "bf16"])
def test_flat_buffers_and_divided_parameters_resume_each_other(variant, tmp_path) -> None:
    names = {"2 ranks, stage 1": ("2 ranks, stage 3",), "2 ranks, stage 3": ("2 ranks, stage 3", "2 ranks, stage 0")}
    check(variant, tmp_path, names)


@pytest.mark.parametrize(
    "variant", [pytest.param("tied", marks=pytest.mark.slow), pytest.param("bf16", marks=pytest.mark.nightly)]
)
def test_pipeline_stages_resume_and_are_resumed(variant, tmp_path) -> None:
    names = {"pipeline 2": ("1 ranks, stage 0", "pipeline 2"), "2 ranks, stage 3": ("pipeline 2",)}
    check(variant, tmp_path, names)


@pytest.mark.nightly
def test_axial_ranks_resume_and_are_resumed(tmp_path) -> None:
    names = {"2 ranks, stage 1": ("sequence 2, stage 3",), "sequence 2, stage 3": ("2 ranks, stage 1",)}
    check("fold", tmp_path, names)
