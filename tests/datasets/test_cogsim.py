"""Datasets of surrogates: outputs are functions of the parameters, sources differ as described, files are complete."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ds4sci.data.surrogate_variables import Variables
from ds4sci.datasets import cogsim_burgers, cogsim_lpt, lpt


@pytest.mark.parametrize("module", [cogsim_lpt, cogsim_burgers])
def test_files_are_the_examples_of_every_source(module: ModuleType, tmp_path: Path) -> None:
    module.make_shards(tmp_path, {source: {"train": 2, "valid": 1} for source in module.COUNTS})
    variables = Variables.read(tmp_path)
    assert variables.parameters == module.VARIABLES.parameters
    assert (variables.field_shape, variables.sources) == (module.VARIABLES.field_shape, module.VARIABLES.sources)
    np.testing.assert_array_equal(variables.low, module.VARIABLES.low)
    parameters = []
    for source in variables.sources:
        train = variables.shards(tmp_path, source, "train")
        assert (len(train), len(variables.shards(tmp_path, source, "valid"))) == (2, 1)
        inputs, targets = module.example(source, "train", 1)
        np.testing.assert_array_equal(train[1][0], inputs)
        np.testing.assert_array_equal(train[1][1], targets)
        assert np.all((inputs >= variables.low - 1e-6) & (inputs <= variables.high + 1e-6))
        parameters += [tuple(train[0][0]), tuple(train[1][0])]
    assert len(set(parameters)) == 6, "no two runs share their parameters"
    examples = sum(n for counts in module.COUNTS.values() for n in counts.values())
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert size / 9 * examples == pytest.approx(module.DATASET.size, rel=0.2)


def test_second_order_adds_skewness_and_the_initial_waves_are_parameters() -> None:
    central = (cogsim_lpt.VARIABLES.low + cogsim_lpt.VARIABLES.high) / 2
    first, second = (cogsim_lpt.contrast(central, second_order=order) for order in (False, True))
    for delta in (first, second):
        assert abs(delta.mean()) < 1e-9, "mass is conserved"
    skewness = len(cogsim_lpt.SHELLS)
    assert cogsim_lpt.outputs(second)[skewness] > cogsim_lpt.outputs(first)[skewness] + 0.1
    noise, waves = cogsim_lpt.white_noise()
    for (a, b, c), wave in zip(cogsim_lpt.PLANE_WAVES, waves, strict=True):
        a, b, c = (a, b, c) if c > 0 else (-a, -b, -c)  # the half spectrum holds the conjugate
        assert abs(noise[a, b, c]) > 0, "one phase is a parameter, the other is fixed"
        assert abs(wave[a, b, c]) == pytest.approx(np.sqrt(cogsim_lpt.GRID**3 / 2))
        assert abs(np.vdot(wave, noise).real) < 1e-3 * np.linalg.norm(noise) * np.linalg.norm(wave)
    moved = central.copy()
    moved[3] = 1.0
    assert np.std(cogsim_lpt.contrast(moved, second_order=True) - second) > 0.1 * second.std()


def test_the_instrument_loses_modes_and_held_out_experiments_have_less_noise() -> None:
    delta = np.random.default_rng(0).standard_normal((32, 32, 32))
    seen = np.fft.rfftn(cogsim_lpt.observed(delta))
    assert np.abs(seen[:, :, 1]).max() < 1e-9
    assert np.abs(seen[:, :, 2]).max() > 1
    kx = lpt.wave_numbers(32, 256.0)[0].ravel()
    ratio = np.abs(seen[5, 0, 3]) / np.abs(np.fft.rfftn(delta)[5, 0, 3])
    assert ratio == pytest.approx(np.exp(-((kx[5] * cogsim_lpt.BEAM) ** 2) / 2))
    parameters, held = cogsim_lpt.example("experiment", "valid", 3)
    truth = cogsim_lpt.VARIABLES.split(cogsim_lpt.outputs(cogsim_lpt.observed(
        cogsim_lpt.contrast(parameters, second_order=True))))[1]  # fmt: skip
    expected = cogsim_lpt.NOISE / np.sqrt(cogsim_lpt.GRID * 4 * cogsim_lpt.REPETITIONS)
    assert np.std(cogsim_lpt.VARIABLES.split(held)[1] - truth) == pytest.approx(expected, rel=0.15)


def test_coarse_and_fine_grids_agree_where_both_resolve_the_solution() -> None:
    smooth = np.array([-1.3, 0.1, 0.1, 0.0, 0.0, 0.2])
    np.testing.assert_allclose(cogsim_burgers.solve(smooth, 1), cogsim_burgers.solve(smooth, 2), atol=2e-4)
    steep = np.array([-2.7, 0.5, 0.5, -0.5, 0.5, 0.0])
    coarse, fine = cogsim_burgers.solve(steep, 1), cogsim_burgers.solve(steep, 4)
    assert np.abs(coarse - fine).max() > 0.05
    energy = np.square(fine).mean(axis=0)
    assert np.all(np.diff(energy) < 1e-6), "energy decreases"
    scalars = cogsim_burgers.VARIABLES.split(cogsim_burgers.outputs(fine))[0]
    assert scalars[3] == pytest.approx(energy[0] - energy[-1])
