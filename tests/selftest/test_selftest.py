"""``ds4sci selftest``: shipped configs pass, and each planted fault is named by the check that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import ds4sci.selftest
from ds4sci.cli import main
from ds4sci.config.run_file import RunConfig
from ds4sci.selftest import Result, rank_processes, selftest
from ds4sci.selftest.checks import RESUME, SCALE, SHARED, SPLIT, STAGES, Selftest
from ds4sci.selftest.comparison import Curve, compare, compare_resumed
from ds4sci.selftest.layouts import RESUMED_STEPS, SAVED, Layout
from tests.support import selftest_faults

ROOT = Path(__file__).parents[2]
CHAINS = "examples/fold/data/chains_train.npz"


def load(name: str, *overrides: str) -> RunConfig:
    return RunConfig.load(ROOT / "configs" / name, overrides)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Selftest:
    """A selftest of the smallest task, whose ranks have the faults that are planted in them."""
    return Selftest(load("operator/burgers.toml"), 2, tmp_path_factory.mktemp("operator"), selftest_faults.train)


def plant(test: Selftest, *faults: str) -> None:
    """Plant one fault in each case of the next set of ranks."""
    (test.folder / "faults").write_text(json.dumps(faults))


def test_planted_faults_are_named(operator: Selftest) -> None:
    """A wrong factor, a dropped share and a wrong gradient of one parameter; and no fault where there is none."""
    layouts = [operator.user_layout(micro=m, stage=s) for m, s in ((4, 1), (2, 1), (2, 2), (1, 2))]
    reference = operator.reference([4, 2, 1])
    plant(operator, "", "wrong_factor", "dropped_share", "wrong_parameter")
    curves = operator.train(layouts)
    fine, factor, share, parameter = (
        compare(SCALE, layout, curve, reference, operator.initial)
        for layout, curve in zip(layouts, curves, strict=True)
    )
    assert fine.passed, fine
    assert fine.error is not None
    assert fine.error < 5e-6
    assert "a factor of 2;" in factor.fault
    assert "rank 1, step 1, micro-batch 4 of 4 (2 samples): its share of the loss is 0 instead of 0.25" in share.fault
    name = [name for name, _ in operator.task.model.named_parameters()][2]
    assert f"gradient of parameter {name} is wrong, 2 times" in parameter.fault


def test_a_dead_rank_is_named(operator: Selftest) -> None:
    plant(operator, "dead_rank")
    with pytest.raises(rank_processes.RankFailure, match=r"rank 1 ended with exit code 9: .*no memory left"):
        operator.train([operator.user_layout(stage=0)])
    assert not [p for p in psutil.Process().children(recursive=True) if "selftest" in " ".join(p.cmdline())]


def _curve(**losses: float) -> Curve:
    values = {int(step.removeprefix("s")): loss for step, loss in losses.items()}
    return Curve(values, values, {}, [], 1.0)


@pytest.mark.parametrize(
    ("resumed", "words"),
    [
        ({"s3": 3.0, "s4": 4.0}, ""),
        ({"s3": 3.1, "s4": 4.1}, "weights or data position"),
        ({"s3": 3.0, "s4": 4.1}, "state of the optimizer"),
        ({"s3": 3.0}, "step 4 was not trained"),
        ({"s3": 3.0, "s4": float("nan")}, "step 4 differs"),
    ],
)
def test_a_wrong_resume_is_explained(resumed: dict[str, float], words: str) -> None:
    layout = Layout(1, 1, 3, 1, 4)
    undisturbed = _curve(s1=1.0, s2=2.0, s3=3.0, s4=4.0)
    result = compare_resumed(RESUME, layout, _curve(s1=1.0, s2=2.0, **resumed), undisturbed, saved=2)
    assert result.passed == (not words)
    assert words in result.fault


def test_ranks_that_parallel_does_not_divide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parallel\.sequence = 2 does not divide --ranks 3"):
        Selftest(load("lm/genome_extend.toml"), 3, tmp_path)


def test_the_command_prints_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    results = [
        Result(SCALE, "2 ranks", 1e-7, seconds=1.0),
        Result(SPLIT, "2 ranks", 0.5, seconds=1.0, fault="rank 1, step 1: its share is 0"),
        Result(SHARED, "2 ranks", note="the task x does not split an example over ranks"),
    ]
    for chosen, code in ((results, 1), ([results[0], results[2]], 0)):
        monkeypatch.setattr(ds4sci.selftest, "selftest", lambda *given, chosen=chosen, **more: (chosen, 3.0))
        for options in ([], ["--json"]):
            with pytest.raises(SystemExit) as stopped:
                main.main(["selftest", str(ROOT / "configs/fold/small.toml"), *options])
            assert int(stopped.value.code or 0) == code
            shown = capsys.readouterr().out
            assert ("its share is 0" in shown) == bool(code)
            assert "does not split an example" in shown


def _folders() -> Iterator[Path]:
    import tempfile

    return Path(tempfile.gettempdir()).glob("ds4sci-selftest-*")


@pytest.mark.slow
def test_a_lost_moment_is_named(tmp_path: Path) -> None:
    test = Selftest(load("operator/burgers.toml"), 2, tmp_path, selftest_faults.train)
    saved = test.user_layout(adam=True)
    plant(test, "")
    (undisturbed,) = test.train([saved])
    plant(test, "lost_moment")
    (result,) = test.resume(saved, undisturbed)
    assert f"step {SAVED + 2} differs" in result.fault
    assert "state of the optimizer" in result.fault
    assert sorted(undisturbed.losses) == list(range(1, RESUMED_STEPS + 1))


@pytest.mark.slow
def test_a_language_model_passes() -> None:
    before = set(_folders())
    results, _ = selftest(load("lm/protein_tiny.toml"), 2)
    assert [result for result in results if not result.passed or result.note] == []
    assert {result.check for result in results} == {SCALE, SPLIT, SHARED, STAGES, RESUME}
    assert set(_folders()) == before, "the temporary folder is removed"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("fold/small.toml", []),
        ("fold/tiny_cpu.toml", []),
        (
            "fold/af2_initial.toml",
            [f"data.train={CHAINS}", "data.features.msa_input=profile"],
        ),
        ("lm/genome_tiny.toml", []),
        ("lm/genome_extend.toml", []),
        ("lm/genome_extend.toml", ["parallel.sequence=1", "parallel.pipeline=4"]),
        ("operator/stokes.toml", []),
    ],
)
def test_shipped_configs_pass(name: str, overrides: list[str]) -> None:
    results, seconds = selftest(load(name, *overrides), 2)
    print(*results, sep="\n")
    assert [result for result in results if not result.passed] == []
    assert seconds < 600
