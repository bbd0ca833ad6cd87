"""Registry of workloads: own ones, packages with an entry point, folders, and what can be wrong with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ds4sci.config.run_file import RunConfig
from ds4sci.workloads import registry

RUN_FILE = """deepspeed = "ds.json"
[task]
name = "tests.support.toy_task"
[train]
steps = 4
[benchmark]
name = "{name}"
title = "A toy"
metric = "score"
target = -0.5
direction = "higher"
"""


def write(folder: Path, name: str, text: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.toml"
    file.write_text(text or RUN_FILE.format(name=name))
    return file


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Function that installs a package with an entry point: source files and metadata in a folder of ``sys.path``."""

    def make(package: str, *, source: str = "", value: str = "", files: tuple[str, ...] = ()) -> Path:
        site = tmp_path / "site"
        folder = site / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(source)
        for name in files:
            write(folder, name)
        info = site / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{package} = {value or package}\n")
        monkeypatch.syspath_prepend(str(site))
        return folder

    return make


def test_own_workloads_are_valid_and_have_their_reference_hyperparameters() -> None:
    from ds4sci.config.hyperparameters import differences

    found = registry.catalogue()
    own = {name: one for name, one in found.workloads.items() if one.origin == "ds4sci"}
    assert {"fold", "protein_lm", "operator"} <= set(own)
    for name, workload in own.items():
        assert workload.file.stem == name
        config = RunConfig.load(workload.file)
        assert config.benchmark == workload.benchmark
        if name in ("fold", "protein_lm", "operator"):
            assert workload.benchmark.hyperparameters, f"{name}: the closed division needs reference hyperparameters"
        assert differences(config) == []
        schedule = (config.deepspeed_config().get("scheduler") or {}).get("params", {})
        assert schedule.get("total_num_steps", config.train.steps) == config.train.steps


def test_a_package_brings_its_workloads(install) -> None:
    folder = install("lab_lungs", files=("lung", "lung_small"))
    write(folder, "pyproject", "[build-system]\nrequires = []\n")  # another TOML file
    found = registry.catalogue()
    assert found.problems == []
    assert found.workloads["lung"].file == folder / "lung.toml"
    assert found.workloads["lung"].origin == "lab_lungs"
    assert registry.find("lung_small").file == folder / "lung_small.toml"
    assert "fold" in found.workloads


def test_a_package_that_cannot_be_imported_is_reported_and_hides_nothing(install) -> None:
    install("lab_good", files=("good",))
    install("lab_broken", source="x = 1\nimport no_such_module\n", files=("broken",))
    found = registry.catalogue()
    assert {"good", "fold"} <= set(found.workloads)
    (problem,) = found.problems
    assert "lab_broken" in problem
    assert "ModuleNotFoundError: No module named 'no_such_module'" in problem
    assert problem.endswith("__init__.py:2)")
    with pytest.raises(ValueError, match=r"unknown benchmark 'broken'.*could not be read.*no_such_module"):
        registry.find("broken")


@pytest.mark.parametrize(("keywords", "message"), [
    ({"value": "lab:here", "source": "here = ['a.toml']"}, "is list; expected the name of a package"),
    ({"value": "lab:there"}, "AttributeError.*there"),
    ({}, r"no run file \(\*.toml\) with \[benchmark\]"),
])  # fmt: skip
def test_an_entry_point_of_another_kind_is_reported(install, keywords, message) -> None:
    install("lab", **keywords)
    (problem,) = registry.catalogue().problems
    assert re.search(message, problem), problem


def test_a_name_is_given_once(install) -> None:
    folder = install("lab_two", files=("fold",))
    found = registry.catalogue()
    assert found.workloads["fold"].origin == "ds4sci"
    (problem,) = found.problems
    assert problem.startswith(f"{folder / 'fold.toml'}: benchmark.name = 'fold' is taken by")


def test_files_and_folders_are_found_by_path(tmp_path) -> None:
    file = write(tmp_path / "mine", "ct")
    assert registry.find(str(file)).name == "ct"
    assert registry.find(str(tmp_path / "mine")).file == file
    assert registry.catalogue([tmp_path / "mine"]).workloads["ct"].origin == str(tmp_path / "mine")
    write(tmp_path / "mine", "mri")
    with pytest.raises(ValueError, match=r"several benchmarks; give one of the files: .*ct.toml, .*mri.toml"):
        registry.find(str(tmp_path / "mine"))


def test_wrong_names_and_paths(tmp_path) -> None:
    with pytest.raises(ValueError, match="unknown benchmark 'flod'; did you mean fold"):
        registry.find("flod")
    with pytest.raises(ValueError, match=r"unknown benchmark 'zzzz'; expected one of: .*operator"):
        registry.find("zzzz")
    with pytest.raises(ValueError, match=r"none.toml: No such file"):
        registry.find(str(tmp_path / "none.toml"))
    with pytest.raises(ValueError, match=r"no run file with \[benchmark\] in this folder"):
        registry.find(f"{tmp_path}/")
    with pytest.raises(ValueError, match="none: no such folder"):
        registry.catalogue([tmp_path / "none"])
    plain = write(tmp_path, "plain", RUN_FILE.format(name="plain").split("[benchmark]")[0])
    with pytest.raises(ValueError, match=r"plain.toml: this run file has no \[benchmark\]: add .*ds4sci train"):
        registry.find(str(plain))


@pytest.mark.parametrize(("text", "message"), [
    (RUN_FILE.replace('"higher"', '"up"'), r"bad.toml:\d+: benchmark.direction: .*'higher' or 'lower'"),
    (RUN_FILE.replace('metric = "score"\n', ""), "bad.toml: benchmark.metric is missing"),
    (RUN_FILE + 'metrik = "x"\n', r"bad.toml:\d+: unknown key benchmark.metrik; did you mean benchmark.metric"),
    (RUN_FILE + "target = 1\n", "bad.toml: not valid TOML: Cannot overwrite a value"),
    ("\xff[benchmark]", r"bad.toml: byte 0 is not UTF-8"),
])  # fmt: skip
def test_an_unreadable_file_is_reported_with_its_place(tmp_path, text, message) -> None:
    (tmp_path / "bad.toml").write_bytes(text.replace("{name}", "bad").encode("latin-1"))
    write(tmp_path, "good")
    found = registry.catalogue([tmp_path])
    assert "good" in found.workloads
    (problem,) = found.problems
    assert re.search(message, problem), problem
    with pytest.raises(ValueError, match=message):
        registry.find(str(tmp_path / "bad.toml"))
