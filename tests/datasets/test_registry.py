"""Names, descriptions and import errors of datasets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ds4sci.datasets import registry


@pytest.mark.parametrize("name", registry.names())
def test_every_dataset_is_described(name: str) -> None:
    dataset = registry.find(name).dataset
    for text in (dataset.title, dataset.origin, dataset.licence, dataset.version, *dataset.splits.values()):
        assert text.strip()
    assert dataset.splits
    assert dataset.size > 0
    for source in dataset.sources:
        assert source.kind in ("wheel", "deb")
        assert source.size > 0
    sums = [*dataset.files.values(), *(source.sha256 for source in dataset.sources)]
    assert all(re.fullmatch("[0-9a-f]{64}", one) and one != "0" * 64 for one in sums)
    assert dataset.kind == "generated" or dataset.files or dataset.sources


def test_the_folder_is_the_registry() -> None:
    assert {"ecoli_genome", "lambda_phage", "pdb_chain_sequences", "pdb_chains", "pdb_sequences"} <= {*registry.names()}
    assert not {"dataset", "registry", "store", "__init__"} & {*registry.names()}


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"unknown dataset 'pdb_chain'; did you mean 'pdb_chains'\?"):
        registry.find("pdb_chain")
    with pytest.raises(ValueError, match="unknown dataset 'qqqq'; the datasets are listed by: ds4sci data list"):
        registry.find("qqqq")
    with pytest.raises(ValueError, match=r"unknown dataset 'no_lab\.data': there is no module no_lab"):
        registry.find("no_lab.data")


def test_import_errors_show_their_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "lung.py").write_text("import numpy\n\nimport a_package_that_is_absent\n")
    (tmp_path / "my_lab" / "empty.py").write_text("DATASET = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"ModuleNotFoundError: No module named 'a_package_.*lung\.py:3\)") as caught:
        registry.find("my_lab.lung")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(ValueError, match=r"my_lab\.empty\.DATASET is NoneType; expected a Dataset"):
        registry.find("my_lab.empty")
