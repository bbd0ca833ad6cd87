"""``ds4sci bench kernels --quick``: the alternatives are right, and the JSON is what README's tables are made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds4sci.bench import commits, evoformer_attention, evoformer_block, plot, tables
from ds4sci.bench.torch_baselines import alternatives
from ds4sci.cli.main import main
from ds4sci.kernels import evoformer_attention as operation


@pytest.mark.parametrize("bias", [True, False])
def test_the_alternatives_compute_the_same(bias: bool) -> None:
    given = evoformer_attention.Shape("x", 5, 12, 2, 8, bias=bias).inputs(torch.float32, torch.device("cpu"))
    want = operation(**given, implementation="reference")
    for name, one in alternatives(torch.device("cpu"), compiled=False).items():
        torch.testing.assert_close(one.run(**given), want, msg=lambda text, name=name: f"{name}: {text}")


def test_quick_run_writes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "kernels.json"
    with pytest.raises(SystemExit) as done:
        main(["bench", "kernels", "--quick", "--json", str(out)])
    assert not done.value.code
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert saved["quick"]
    assert saved["machine"]["commit"]
    assert saved["rates"]["gemm float32"] > 0
    assert {row["implementation"] for row in saved["measured"]} >= {"tiled", "naive", "SDPA", "chunked 4"}
    assert len(saved["rows"]) == 4  # one shape, two dtypes, with and without backward
    assert tables.section(saved) in capsys.readouterr().out


def test_a_strangers_wrong_numbers_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = evoformer_attention.Alternative(lambda **given: torch.ones_like(given["q"]))
    monkeypatch.setattr(evoformer_attention, "alternatives", lambda device, compiled: {"odd": wrong})
    rows, left_out = evoformer_attention.measure(
        evoformer_attention.QUICK[0], torch.float32, torch.device("cpu"), rounds=1, compiled=False
    )
    assert "odd" not in {row["implementation"] for row in rows}
    assert len(left_out) == 2
    assert "odd left out (its numbers differ by" in left_out[0]


def test_growth_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evoformer_attention, "GROWTH", (16, 32))
    grown = evoformer_attention.growth(torch.device("cpu"))
    assert {row["n"] for row in grown} == {16, 32}
    assert len(grown) == 2 * (1 + len(evoformer_attention.GROWING))
    measured, _ = evoformer_attention.measure(
        evoformer_attention.QUICK[0], torch.float32, torch.device("cpu"), rounds=1, compiled=False
    )
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"measured": measured, "growth": grown}), encoding="utf-8")
    assert plot.plot(path).stat().st_size > 10_000


def test_quick_block_and_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "block.json"
    with pytest.raises(SystemExit) as done:
        main(["bench", "kernels", "--op", "evoformer_block", "--quick", "--json", str(out)])
    assert not done.value.code
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert {r["way"] for r in saved["measured"]} == {"ds4sci", "plain", "plain, checkpointed"}
    for parts in saved["shares"]:
        assert sum(parts[kind] for kind in ("matrix products", "fused attention", "outside")) == pytest.approx(1)
        assert parts["matrix products"] > 0.1

    def one(config: object, device: object, n: int, name: str) -> dict[str, object]:
        return {"way": name, "n": n, "seconds": n**3.0, "memory_mb": n**2 / (4 if name == "ds4sci" else 1)}

    monkeypatch.setattr(evoformer_block, "_one", one)
    grown = evoformer_block.growth(None, torch.device("cpu"), 1e4)  # type: ignore[arg-type]
    for name, longest in (("plain", 96), ("ds4sci", 192)):  # 100 and 200, in steps of 32
        lengths = [r["n"] for r in grown if r["way"] == name]
        assert lengths == sorted(lengths)
        assert lengths[-2:] == [longest, longest + 32]
        assert any(f"{name}: the longest n in 8 GB is" in note for note in evoformer_block._longest_notes(grown))
    out.write_text(json.dumps(saved | {"growth": grown}), encoding="utf-8")
    assert plot.plot(out).stat().st_size > 10_000


def test_quick_operations(tmp_path: Path) -> None:
    out = tmp_path / "operations.json"
    with pytest.raises(SystemExit) as done:
        main(["bench", "kernels", "--op", "transition", "--quick", "--json", str(out)])
    assert not done.value.code
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert len(saved["rows"]) == 8  # ReLU and SwiGLU, two dtypes, with and without backward
    assert {r["implementation"] for r in saved["measured"]} >= {"tiled", "reference"}


def test_unknown_operation_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "kernels", "--op", "convolution", "--json", str(tmp_path / "x.json")])
    assert "--op convolution" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "kernels", "--case", "circle", "--json", str(tmp_path / "x.json")])
    assert "--case 'circle': there are: MSA row, " in capsys.readouterr().err


@pytest.mark.slow
def test_two_checkouts_by_turns() -> None:
    root = str(Path(__file__).resolve().parents[2])
    found = commits.compare(root, only=["layer_norm, c 128, n 128, float32"], rounds=1)
    assert [row["case"].rpartition(", ")[2] for row in found["rows"]] == ["forward", "forward + backward"]
    assert found["geometric_mean"].keys() >= {"seconds", "cpu_seconds"}
    assert found["worst"]["seconds"]["ratio"] >= found["geometric_mean"]["seconds"] > 0
    with pytest.raises(ValueError, match="no case has it in its name"):
        commits.compare(root, only=["convolution"])


def test_what_is_no_commit_is_refused() -> None:
    with pytest.raises(ValueError, match="--against nowhere: neither a folder nor a commit"):
        commits.compare("nowhere")
