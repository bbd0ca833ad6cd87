"""Equations: convergence of reference solutions, and residuals that vanish at known solutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ds4sci.physics import differentiate, pdes, random_fields
from ds4sci.physics.pdes import PDES, grid_points

SMALL = {
    "reaction_diffusion": {"reaction": 0.5},
    "burgers": {},
    "plate": {"modes": 3},
    "stokes": {},
}


def sample_coefficients(pde: pdes.Pde, count: int = 2) -> np.ndarray:
    return np.stack([pde.space.sample(5, number) for number in range(count)])


@pytest.mark.parametrize("name", PDES)
def test_shapes_and_seeds(name: str) -> None:
    pde = pdes.build({"name": name, **SMALL[name]})
    coefficients = sample_coefficients(pde)
    assert np.array_equal(coefficients, sample_coefficients(pde))
    rng = np.random.default_rng(0)
    points = pde.points(rng, 13, 8)
    assert set(points) == set(pde.orders)
    assert all(p.shape[1] == len(pde.names) and p.min() >= 0 and p.max() <= 1 for p in points.values())
    solution = pde.solve(coefficients)
    assert solution.shape == (2, *map(len, pde.axes), len(pde.components))
    assert np.isfinite(solution).all()
    assert np.abs(solution).max() > 1e-3


@pytest.mark.parametrize("name", ["reaction_diffusion", "burgers", "stokes"])
def test_reference_solution_converges(name: str) -> None:
    pde = pdes.build({"name": name, **SMALL[name]})
    coefficients = sample_coefficients(pde, 3)
    coarse = pde.solve(coefficients)
    finer = pde.solve(coefficients, refinement={"reaction_diffusion": 8, "burgers": 8, "stokes": 3}[name])
    gap = np.linalg.norm(coarse - finer) / np.linalg.norm(finer)
    assert gap < {"reaction_diffusion": 1e-4, "burgers": 1e-5, "stokes": 2e-3}[name]


def test_reaction_diffusion_against_a_formula() -> None:
    """Without reaction and with a constant sine source, u = (1 - exp(-Dπ²t)) sin(πx) / (Dπ²)."""
    pde = pdes.build({"name": "reaction_diffusion", "reaction": 0.0, "diffusion": 0.05})
    sine = random_fields.FunctionSpace(1, lambda points: np.sin(np.pi * points[:, 0])[None])
    object.__setattr__(pde, "space", sine)
    x, t = np.meshgrid(*pde.axes, indexing="ij")
    rate = 0.05 * np.pi**2
    known = (1 - np.exp(-rate * t)) * np.sin(np.pi * x) / rate
    assert np.abs(pde.solve(np.ones((1, 1)))[0, ..., 0] - known).max() < 2e-5


def test_burgers_against_the_cole_hopf_solution() -> None:
    """u = 4πν sin(2πx) E / (a + cos(2πx) E), E = exp(-4π²νt), solves the equation."""
    nu, a = 0.02, 1.5
    pde = pdes.build({"name": "burgers", "viscosity": nu})

    def exact(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        fall = np.exp(-4 * np.pi**2 * nu * t)
        return 4 * np.pi * nu * np.sin(2 * np.pi * x) * fall / (a + np.cos(2 * np.pi * x) * fall)

    space = random_fields.FunctionSpace(1, lambda points: exact(points[:, 0], np.zeros(len(points)))[None])
    object.__setattr__(pde, "space", space)
    x, t = np.meshgrid(*pde.axes, indexing="ij")
    assert np.abs(pde.solve(np.ones((1, 1)))[0, ..., 0] - exact(x, t)).max() < 1e-8


def test_plate_against_finite_differences() -> None:
    """∇²(∇²w) by finite differences of Navier's series."""
    pde = pdes.build({"name": "plate", "modes": 3})
    fine = np.linspace(0, 1, 129)
    object.__setattr__(pde, "axes", (fine, fine))
    coefficients = sample_coefficients(pde, 1)
    w = pde.solve(coefficients)[0, ..., 0]

    def laplace(f: np.ndarray) -> np.ndarray:
        return (f[2:, 1:-1] + f[:-2, 1:-1] + f[1:-1, 2:] + f[1:-1, :-2] - 4 * f[1:-1, 1:-1]) * 128**2

    load = pde.space.values(coefficients, grid_points(pde.axes)).reshape(w.shape)[2:-2, 2:-2]
    biharmonic = laplace(laplace(w)) / (4 * np.pi**4)
    assert np.linalg.norm(biharmonic - load) / np.linalg.norm(load) < 3e-3
    assert np.abs(w[[0, -1]]).max() < 1e-12


def test_stokes_against_a_manufactured_solution() -> None:
    """ψ = sin²(πx) sin²(πy) and p = cos(πx) sin(πy) with the corresponding force: the error is O(h²)."""
    from scipy.sparse.linalg import splu

    from ds4sci.physics.pdes.stokes import _staggered

    pi = np.pi

    def velocity(x: np.ndarray, y: np.ndarray) -> np.ndarray:  # ψ_y; v is -ψ_x = -velocity(y, x)
        return np.sin(pi * x) ** 2 * pi * np.sin(2 * pi * y)

    def laplacian(x: np.ndarray, y: np.ndarray) -> np.ndarray:  # its Laplacian
        return 2 * pi**3 * (np.cos(2 * pi * x) - 2 * np.sin(pi * x) ** 2) * np.sin(2 * pi * y)

    errors = []
    for n in (16, 32):
        face, centre = np.arange(1, n) / n, (np.arange(n) + 0.5) / n
        x, y = np.meshgrid(face, centre, indexing="ij")
        force_u = laplacian(x, y) + pi * np.sin(pi * x) * np.sin(pi * y)  # ∇²u - p_x
        known = velocity(x, y)
        x, y = np.meshgrid(centre, face, indexing="ij")
        force_v = -laplacian(y, x) - pi * np.cos(pi * x) * np.cos(pi * y)
        system, _ = _staggered(n)
        solved = splu(system).solve(np.concatenate([force_u.ravel(), force_v.ravel(), np.zeros(n * n)]))
        p = solved[2 * n * (n - 1) :].reshape(n, n)
        x, y = np.meshgrid(centre, centre, indexing="ij")
        pressure = np.cos(pi * x) * np.sin(pi * y)
        errors.append(
            [
                np.abs(solved[: n * (n - 1)].reshape(n - 1, n) - known).max() / np.abs(known).max(),
                np.linalg.norm(p - p.mean() - pressure + pressure.mean()) / np.linalg.norm(pressure),
            ]
        )
    coarse, fine = np.array(errors)
    assert (fine < 0.02).all()
    assert (coarse / fine > 3).all()


def test_stokes_flow_conserves_mass() -> None:
    pde = pdes.build({"name": "stokes"})
    u, v, p = np.moveaxis(pde.solve(sample_coefficients(pde, 1))[0], -1, 0)
    assert np.abs(u.sum(1)).max() < 1e-9 * np.abs(u).sum()
    assert np.abs(v.sum(0)).max() < 1e-9 * np.abs(v).sum()
    assert abs(p.mean()) < 1e-9 * np.abs(p).max()
    lid = pde.space.values(sample_coefficients(pde, 1), np.stack([pde.axes[0], np.ones(64)], axis=1))[0]
    assert np.abs(u[:, -1] - lid).max() < 0.25 * np.abs(lid).max()  # half a cell below the lid


@pytest.mark.parametrize("name", ["reaction_diffusion", "burgers", "plate"])
def test_residuals_vanish_on_the_solution(name: str) -> None:
    """Residuals of a fit to the reference solution are small compared with those of twice the fit."""
    pde = pdes.build({"name": name, **SMALL[name]})
    coefficients = sample_coefficients(pde, 2)
    solve = known_solution(pde, coefficients)
    points = pde.points(np.random.default_rng(1), 200, 40)
    known = {k: torch.from_numpy(v) for k, v in pde.known_values(coefficients, points).items()}

    def residuals(scale: float) -> dict[str, Tensor]:
        def at(where: str):
            p = torch.from_numpy(points[where])
            return differentiate(
                lambda f, x: scale * solve(x), torch.zeros(2, 1), p, names=pde.names, method="zcs_reverse", check=False
            )

        return pde.residuals(at, known)

    correct, wrong = residuals(1.0), residuals(2.0)
    assert set(correct) == set(pde.weights)
    for term, value in correct.items():  # sines cannot fit u near the ends, so a quantile is used
        size = float(value.detach().abs().quantile(0.9 if term == "equation" else 1.0))
        assert size < 0.02 * max(0.1, float(wrong[term].detach().abs().quantile(0.9))), term


def known_solution(pde: pdes.Pde, coefficients: np.ndarray):
    """The map points → u [2, n] in torch: a smooth series fitted to the reference solution."""
    if pde.names == "xy":
        i, j = np.meshgrid(np.arange(1, 4), np.arange(1, 4), indexing="ij")
        modes = [(a * np.pi, b * np.pi) for a, b in zip(i.ravel(), j.ravel(), strict=True)]
        shape = lambda x, y, sin: np.stack([sin(a * x) * sin(b * y) for a, b in modes])  # noqa: E731
        grid = grid_points(pde.axes)
        basis = shape(grid[:, 0], grid[:, 1], np.sin)
        fit = torch.from_numpy(np.linalg.lstsq(basis.T, pde.solve(coefficients).reshape(2, -1).T, rcond=None)[0].T)
        return lambda p: fit @ torch.stack([(a * p[:, 0]).sin() * (b * p[:, 1]).sin() for a, b in modes])
    periodic = pde.axes[0][-1] < 1
    count = 48 if periodic else 60
    waves = np.arange(1, count)
    x, t = pde.axes
    u = pde.solve(coefficients)[..., 0]
    if periodic:
        in_x = np.concatenate([np.ones((1, len(x))), *(f(2 * np.pi * waves[:, None] * x) for f in (np.cos, np.sin))])
    else:
        in_x = np.sin(np.pi * waves[:, None] * x)
    in_t = np.polynomial.chebyshev.chebvander(2 * t - 1, 30).T
    fitted = np.stack([np.linalg.pinv(in_x.T) @ one @ np.linalg.pinv(in_t) for one in u])
    fit = torch.from_numpy(fitted)

    def call(p: Tensor) -> Tensor:
        k = torch.from_numpy(waves.astype(np.float64))[:, None]
        if periodic:
            phase = 2 * np.pi * k * p[:, 0]
            left = torch.cat([torch.ones_like(phase[:1]), phase.cos(), phase.sin()])
        else:
            left = (np.pi * k * p[:, 0]).sin()
        z = 2 * p[:, 1] - 1
        rows = [torch.ones_like(z), z]
        for _ in range(29):
            rows.append(2 * z * rows[-1] - rows[-2])
        return torch.einsum("mkl,kn,ln->mn", fit, left, torch.stack(rows))

    return call


@pytest.mark.parametrize("name", ["reaction_diffusion", "burgers", "plate"])
def test_hard_constraints_satisfy_the_conditions(name: str) -> None:
    """The residuals of the conditions are zero for any network, and all methods give the same derivatives."""
    from ds4sci.tasks.neural_operator import Config, NeuralOperatorTask

    settings = {
        "pde": {"name": name},
        "loss": {"hard_constraints": True},
        "model": {"branch": [8], "trunk": [8], "latent": 4},
    }
    if name == "burgers":
        settings["model"]["period"] = [1.0, 0.0]
    task = NeuralOperatorTask(Config.model_validate(settings), seed=0)
    batch = next(task.batches(start_step=0, rank=0, world_size=1, micro_batch_size=3, accumulation_steps=1))
    found = dict(zip(task.pde.weights, task.model(batch), strict=True))
    free = {"equation", "moment"}
    assert all(float(r.detach().abs().max()) < 2e-5 for key, r in found.items() if key not in free)
    assert float(found["equation"].detach().abs().max()) > 1e-2
    network = task.model.network
    few = batch.points["interior"][:9]
    fields = [
        differentiate(network, batch.functions, few, names=task.pde.names, method=method)(task.pde.names[0] * 2)
        for method in ("zcs_reverse", "zcs_forward", "func_loop", "data_vect")
    ]
    for other in fields[1:]:
        torch.testing.assert_close(other, fields[0], rtol=1e-3, atol=1e-3)


def test_function_spaces() -> None:
    x = np.linspace(0, 1, 50)[:, None]
    process = random_fields.gaussian_process(0.2)
    covariance = process.basis(x).T @ process.basis(x)
    known = np.exp(-((x - x.T) ** 2) / (2 * 0.2**2))
    assert np.abs(covariance - known).max() < 1e-6
    field = random_fields.periodic_field(8, variance=0.25)
    assert np.allclose(field.basis(x), field.basis(x + 1))
    assert np.allclose((field.basis(x) ** 2).sum(0), 0.25)
    plate = random_fields.sine_series(3)
    fine = grid_points((np.linspace(0, 1, 101),) * 2)
    assert (plate.basis(fine) ** 2).sum(0).mean() == pytest.approx(1.0, rel=0.05)
    ends = random_fields.vanishing_at_ends(process).basis(np.array([[0.0], [1.0]]))
    assert np.abs(ends).max() < 1e-12
    with pytest.raises(ValueError, match="length_scale"):
        random_fields.gaussian_process(0.001)


def test_error_messages() -> None:
    with pytest.raises(ValueError, match="expected one of reaction_diffusion"):
        pdes.build({"name": "navier"})
    with pytest.raises(ValueError, match="no option 'nu'; it has viscosity"):
        pdes.build({"name": "burgers", "nu": 1})
    with pytest.raises(ValueError, match="viscosity = 0"):
        pdes.build({"name": "burgers", "viscosity": 0})
    with pytest.raises(ValueError, match="need at least 33"):
        pdes.build({"name": "burgers", "sensors": 20})
