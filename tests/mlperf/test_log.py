"""MLPerf log: events of a run, of a real training, and the keys of the closed division of openfold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ds4sci.config.run_file import RunConfig
from ds4sci.mlperf import openfold
from ds4sci.mlperf.check import check
from ds4sci.mlperf.log import Layout, MlperfLog
from ds4sci.mlperf.log_file import LogFile
from ds4sci.train.listeners import data_files, mlperf_log
from ds4sci.train.stages import Stages
from tests.support.mlperf_logs import CLEARED, tiny_config, write_log


def test_events_and_units(tmp_path: Path) -> None:
    log = LogFile.read(write_log(tiny_config(tmp_path), tmp_path / "run"))
    keys = [event.key for event in log.events]
    assert keys[0] == "cache_clear"
    assert keys.index("init_stop") + 1 == keys.index("run_start")
    assert keys[-2:] == ["eval_stop", "run_stop"]
    blocks = [(e.metadata["first_epoch_num"], e.metadata["epoch_count"]) for e in log.all("block_start")]
    assert blocks == [(0, 640), (640, 640), (1280, 640)]  # samples: 10 steps of 64
    points = [(e.metadata["epoch_num"], e.metadata["step_num"], e.value) for e in log.all("eval_accuracy")]
    assert points == [(640, 10, -0.9), (1280, 20, -0.7), (1920, 30, -0.4)]
    values = {key: log.value(key) for key in ("seed", "global_batch_size", "train_samples", "eval_samples", "opt_name")}
    assert values == {
        "seed": 0, "global_batch_size": 64, "train_samples": 1000, "eval_samples": 20, "opt_name": "AdamW",
    }  # fmt: skip
    assert log.value("opt_base_learning_rate") == tiny_config(tmp_path).deepspeed_config()["optimizer"]["params"]["lr"]
    assert not any(event.metadata["file"].startswith("/") for event in log.events)
    times = [event.time_ms for event in log.events]
    assert times == sorted(times)


def test_a_run_that_misses_the_target_or_breaks_is_aborted(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    missed = LogFile.read(write_log(config, tmp_path / "missed", [-0.9, float("nan")]))
    assert missed.first("run_stop").metadata["status"] == "aborted"
    log = MlperfLog(config, tmp_path / "broken", Layout(1, 0, "", 1, (64, 32, 2)), [CLEARED])
    stages = Stages(log)
    with stages.stage("init"):
        stages.message("task", step=0, parameters=1, train_samples=None)
    with pytest.raises(RuntimeError), stages.stage("run"), stages.stage("train", step=0):
        raise RuntimeError("a rank failed")
    stages.close()
    broken = LogFile.read(log.file)
    assert broken.first("run_stop").metadata["status"] == "aborted"
    assert broken.first("train_samples").metadata["generated"]


def test_no_log_of_a_run_that_did_not_begin(tmp_path: Path) -> None:
    log = MlperfLog(tiny_config(tmp_path), tmp_path / "run", Layout(1, 0, "", 1, (64, 32, 2)), [])
    stages = Stages(log)
    with pytest.raises(ValueError), stages.stage("init"):  # noqa: PT011
        raise ValueError("no data")
    stages.close()
    assert not log.file.exists()


def test_a_real_training_writes_a_log_that_passes(tmp_path: Path) -> None:
    from ds4sci.train.run import train

    output = f"train.output={str(tmp_path)!r}"
    config = tiny_config(
        tmp_path, output, "train.name=run", "train.steps=3", "train.evaluate_every=2", "benchmark.target=-1e9"
    )
    train(config)
    file = tmp_path / "run" / "mlperf" / "result_0.txt"
    assert check([file]) == []
    log = LogFile.read(file)
    assert log.value("eval_samples") == 2
    assert log.value("model_parameters_count") > 100
    assert log.first("train_samples").metadata["generated"]  # every step draws new functions
    assert log.all("eval_accuracy")[-1].metadata["step_num"] == 2


def test_without_the_library_one_line_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ds4sci.train import listeners

    class Context:
        is_main = True

        def broadcast(self, value: bool) -> bool:
            return value

    monkeypatch.setattr(listeners, "is_available", lambda: False)
    assert mlperf_log(tiny_config(tmp_path), Context(), tmp_path) == []
    assert capsys.readouterr().err == (
        'No MLPerf log is written: mlperf-logging is not installed (pip install "ds4sci[mlperf]").\n'
    )


def openfold_config(*overrides: str) -> RunConfig:
    chains = "examples/fold/data/chains_valid.npz"
    return RunConfig.load("configs/fold/openfold.toml", [f"data.valid={chains}", f"data.train={chains}", *overrides])


def test_files_of_the_run_are_found() -> None:
    assert [file.name for file in data_files(openfold_config())] == ["chains_valid.npz"] * 2


def test_openfold_states_every_closed_key_or_lists_it(tmp_path: Path) -> None:
    import mlperf_logging

    rules = Path(mlperf_logging.__file__).parent / "compliance_checker" / "hpc_3.0.0"
    named = {
        rule["KEY"]["NAME"]
        for name in ("common", "closed_common", "closed_openfold")
        for rule in yaml.load((rules / f"{name}.yaml").read_text(), Loader=yaml.BaseLoader)
        if rule.get("KEY", {}).get("REQ") == "EXACTLY_ONE"
    }
    config = openfold_config("benchmark.submission.division=closed")
    layout = Layout(2, 8, "H100", 16, (16, 1, 1))
    file = write_log(config, tmp_path / "run", [0.7, 0.81], layout=layout)
    log = LogFile.read(file)
    missing = {event.value: event.metadata["reason"] for event in log.all("missing_key")}
    assert named <= {event.key for event in log.events} | set(missing)
    assert not set(missing) & {event.key for event in log.events}
    assert set(missing) == {*openfold.MISSING, "init_checkpoint_sha256sum"}
    assert log.value("max_msa_clusters") == 124
    assert log.value("val_max_sequence_length") > 30
    assert log.value("swa_decay_rate") == 0.9
    # The closed division is for the published network; the checker names what differs here.
    found = {finding.rule for finding in check([file])}
    assert found == {
        "train_max_pdb_release_date", "val_min_cameo_submission_date", "val_max_cameo_submission_date",
        "val_max_sequence_length", "train_samples", "eval_samples", "model_parameters_count",
        "init_checkpoint_sha256sum", "templates_enabled", "max_templates", "initial_training_dataloader_type",
    }  # fmt: skip


def test_openfold_key_of_initial_weights(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x")
    config = openfold_config(f"train.weights={str(weights)!r}", "data.valid=nothing.npz")
    keys = dict(openfold.closed_keys(config, 1))
    assert re.fullmatch("[0-9a-f]{64}", keys["init_checkpoint_sha256sum"])
    assert "val_max_sequence_length" not in keys
    assert "does not exist" in openfold.missing_keys(config)["val_max_sequence_length"]


def test_staging_is_logged_before_the_run(tmp_path: Path) -> None:
    log = MlperfLog(tiny_config(tmp_path), tmp_path / "run", Layout(1, 0, "", 1, (64, 32, 2)), [CLEARED])
    stages = Stages(log)
    with stages.stage("staging") as end:
        end["copied_bytes"] = 7
    with stages.stage("init"), stages.stage("run"):
        pass
    stages.close()
    start, stop = (LogFile.read(log.file).first(key) for key in ("staging_start", "staging_stop"))
    assert start.time_ms <= stop.time_ms
    assert stop.metadata["staging_copied_bytes"] == 7
