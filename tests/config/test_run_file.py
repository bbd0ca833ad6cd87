"""The run file: loading, overrides, validation messages, saved copies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds4sci.config import errors
from ds4sci.config.run_file import RunConfig, TrainConfig, find_file
from ds4sci.config.task_module import import_task

JSON = '{"train_batch_size": 4, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": true}}}\n'
TASK = """
from pydantic import BaseModel, ConfigDict
class Phase(BaseModel):
    model_config = ConfigDict(extra="forbid")
    crop: int = 64
class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 8
    phases: list[Phase] = []
class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: Model = Model()
def build(config, *, seed, steps): ...
"""
TOML = """# a comment
deepspeed = "ds.json"

[task]
name = "config_lab.task"

[train]
steps = 10

[model]
width = 16
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with run.toml, ds.json and a task module."""
    package = tmp_path / "config_lab"
    package.mkdir()
    (package / "task.py").write_text(TASK)
    (tmp_path / "ds.json").write_text(JSON)
    (tmp_path / "run.toml").write_text(TOML)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(lab: Path, text: str, *overrides: str) -> str:
    (lab / "run.toml").write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        RunConfig.load("run.toml", list(overrides))
    assert type(caught.value) is ValueError  # not a subclass of pydantic or of the parser
    return str(caught.value)


def test_loads_with_defaults_and_overrides(lab: Path) -> None:
    config = RunConfig.load("run.toml", ["train.steps=20", "model.width=32", 'train.name="two words"', "seed=7"])
    assert (config.train.steps, config.seed, config.train.name) == (20, 7, "two words")
    assert config.settings.model.width == 32
    assert config.train.ema_decay == TrainConfig(steps=1).ema_decay
    assert config.deepspeed == lab / "ds.json"
    assert config.deepspeed_config() == json.loads(JSON)


def test_an_override_is_a_toml_value_and_a_bare_word_is_a_string(lab: Path) -> None:
    config = RunConfig.load(
        "run.toml", ["kernels.varlen_attention=tiled", "train.output=out/runs-1", "train.ema_decay=0.5"]
    )
    assert config.kernels == {"varlen_attention": "tiled"}
    assert config.train.output == Path("out/runs-1")
    assert config.train.ema_decay == 0.5
    phases = RunConfig.load("run.toml", ["model.phases=[{crop=32}, {crop=96}]"]).settings.model.phases
    assert [p.crop for p in phases] == [32, 96]


@pytest.mark.parametrize(
    "override", ["train.steps", "=3", "train..steps=3", "train.steps=", "train.name=two words", "a b=1"]
)
def test_a_malformed_override_is_refused_with_an_example(lab: Path, override: str) -> None:
    message = refused(lab, TOML, override)
    assert f"override {override!r}" in message
    assert "train." in message


def test_an_override_inside_a_value_is_refused(lab: Path) -> None:
    assert "train.steps.x=1" in (message := refused(lab, TOML, "train.steps.x=1"))
    assert "steps is a value, not a section" in message


@pytest.mark.parametrize(
    ("line", "place", "hint"),
    [
        ("[train]\nsteps = 10\nevaluate_evry = 5", "run.toml:8", "did you mean train.evaluate_every?"),
        ("[train]\nsteps = 10\n[model]\nwidht = 3", "run.toml:9", "did you mean model.width?"),
        ("[train]\nsteps = 10\n[modle]\nwidth = 3", "run.toml:8", "did you mean model?"),
        ("[train]\nsteps = 10\n[[model.phases]]\ncorp = 3", "run.toml", "did you mean model.phases.0.crop?"),
        ("train.steps = 10\ntrain.nmae = 'x'", "run.toml:7", "did you mean train.name?"),
    ],
)
def test_an_unknown_key_names_file_line_and_nearest_key(lab: Path, line: str, place: str, hint: str) -> None:
    head = 'deepspeed = "ds.json"\nseed = 1\n\n'
    task = 'task.name = "config_lab.task"\n\n'
    message = refused(lab, head + task + line)
    assert place in message
    assert hint in message
    assert "Valid in" in message


@pytest.mark.parametrize(
    ("key", "owner"),
    [
        ("train.batch_size", "train_batch_size"),
        ("train.learning_rate", "optimizer.params.lr"),
        ("train.lr", "optimizer.params.lr"),
        ("train.precision", "bf16, fp16 or torch_autocast"),
        ("train.zero_stage", "zero_optimization"),
        ("train.warmup_steps", "scheduler"),
        ("zero_optimization.stage", "zero_optimization"),
        ("optimizer.type", "optimizer"),
        ("gradient_clipping", "gradient_clipping"),
        ("wandb.enabled", "wandb"),
    ],
)
def test_a_key_of_the_json_in_the_toml_names_its_owner(lab: Path, key: str, owner: str) -> None:
    message = refused(lab, TOML, f"{key}=1")
    assert f"owned by the DeepSpeed JSON: set {owner} in the file" in message


def test_run_file_keys_are_not_owned_by_the_json() -> None:
    for name in [*RunConfig.__dataclass_fields__, *TrainConfig.model_fields]:
        assert errors.owner_in_json(name) is None, name


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=ten", ["override 'train.steps=ten'", "train.steps", "integer", "got 'ten'"]),
        ("train.steps=0", ["train.steps", "greater than 0", "got 0"]),
        ("train.ema_decay=1.0", ["train.ema_decay", "less than 1"]),
        ("model.width=wide", ["override 'model.width=wide'", "model.width", "got 'wide'"]),
        ("kernels.varlen_attention=3", ["kernels.varlen_attention", "string"]),
    ],
)
def test_a_wrong_value_names_location_key_and_value(lab: Path, override: str, expected: list[str]) -> None:
    message = refused(lab, TOML, override)
    assert all(part in message for part in expected), message


def test_a_wrong_value_in_the_file_names_its_line(lab: Path) -> None:
    message = refused(lab, TOML.replace("width = 16", 'width = "wide"'))
    assert "run.toml:11: model.width" in message


def test_missing_keys_and_files(lab: Path) -> None:
    assert "train.steps is missing" in refused(lab, TOML.replace("steps = 10", ""))
    assert "deepspeed is missing" in refused(lab, TOML.replace('deepspeed = "ds.json"', ""))
    assert "[task]" in refused(lab, 'deepspeed = "ds.json"\n')
    message = refused(lab, TOML.replace("config_lab.task", "fould"))
    assert "no module ds4sci.tasks.fould" in message
    message = refused(lab, TOML.replace("ds.json", "dss.json"))
    assert "deepspeed = 'dss.json'" in message
    assert str(lab / "dss.json") in message
    with pytest.raises(ValueError, match=r"no such run file; tried .*nowhere.toml"):
        RunConfig.load("nowhere.toml")


def test_malformed_toml_names_the_line(lab: Path) -> None:
    message = refused(lab, TOML.replace("steps = 10", "steps = = 10"))
    assert "run.toml: not valid TOML" in message
    assert "line 8" in message


def test_a_byte_order_mark_changes_nothing(lab: Path) -> None:
    """Editors on Windows write it, in the run file and in the DeepSpeed JSON."""
    plain = RunConfig.load(lab / "run.toml").resolved()
    for file, text in (("run.toml", TOML), ("ds.json", JSON)):
        (lab / file).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert RunConfig.load(lab / "run.toml").resolved() == plain


def test_an_import_error_inside_a_task_module_is_raised(lab: Path) -> None:
    (lab / "config_lab" / "broken.py").write_text("import no_such_package_at_all\n")
    (lab / "run.toml").write_text(TOML.replace("config_lab.task", "config_lab.broken"))
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        RunConfig.load("run.toml")


def test_saved_copies_load_again_and_the_json_is_byte_for_byte(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = '{\t"train_batch_size" : 4,\r\n\r\n "optimizer": {"type": "AdamW"} }   '
    (lab / "ds.json").write_bytes(odd.encode())
    config = RunConfig.load("run.toml", ["train.steps=33"])
    run = lab / "runs" / "a"
    run.mkdir(parents=True)
    saved = config.save(run)
    assert (run / "deepspeed.json").read_bytes() == odd.encode()
    assert (run / "commit.txt").read_text().strip()
    moved = lab / "elsewhere"
    run.rename(moved)
    (lab / "deepspeed.json").write_text("{}")  # must not be used instead of that of the run
    again = RunConfig.load(moved / "config.json")
    assert again == saved.moved_to(moved)
    assert again.train.steps == 33


def test_the_json_is_found_next_to_the_run_file_and_above_configs(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = lab / "project" / "configs" / "fold"
    nested.mkdir(parents=True)
    (nested.parent / "deepspeed").mkdir()
    (nested.parent / "deepspeed" / "x.json").write_text(JSON)
    (nested / "run.toml").write_text(TOML.replace("ds.json", "configs/deepspeed/x.json"))
    assert RunConfig.load(nested / "run.toml").deepspeed == nested.parent / "deepspeed" / "x.json"
    other = RunConfig.load(nested / "run.toml", deepspeed=lab / "ds.json")
    assert other.deepspeed == lab / "ds.json"


def test_packaged_configs_are_found_from_anywhere(lab: Path) -> None:
    assert find_file(Path("configs/deepspeed/tiny_cpu.json"), near=None, what="DeepSpeed JSON").is_file()


@given(st.text(max_size=40))
def test_any_override_is_accepted_or_raises_a_value_error(text: str) -> None:
    from ds4sci.config.run_file import _apply_override

    tree: dict = {"train": {"steps": 1}}
    try:
        _apply_override(tree, text)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    assert "override" in message if message else "=" in text


@pytest.mark.parametrize(
    ("name", "words"), [("..a", "expected a name such as fold"), ("", "expected a name"), ("fold x", "expected a name")]
)
def test_a_task_s_name_that_is_none(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        import_task(name)
