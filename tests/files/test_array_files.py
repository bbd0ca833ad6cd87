"""Writing of ``.npz`` files: names and values as given, no Python objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds4sci.files.array_files import save_arrays


@pytest.mark.parametrize("compress", [False, True])
def test_arrays_are_written_as_given(tmp_path: Path, compress: bool) -> None:
    arrays = {"x": np.arange(3), "names": np.array(["a", "bc"])}
    with (tmp_path / "a.npz").open("wb") as handle:
        save_arrays(handle, arrays, compress=compress)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert set(found.files) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


def test_objects_are_refused_by_name(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as handle, pytest.raises(TypeError, match="array 'bad' holds Python objects"):
        save_arrays(handle, {"good": np.arange(3), "bad": np.array([{}], object)})
