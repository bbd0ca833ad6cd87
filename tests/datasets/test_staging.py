"""Staging: shares of the ranks, kills, flipped bytes, several runs at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ds4sci.datasets import checked_copy, manifest, staging, store
from ds4sci.datasets.dataset import MANIFEST
from ds4sci.datasets.manifest import FileSum
from ds4sci.datasets.staging import STATE, shares, stage, staged_folder
from ds4sci.files.atomic_files import fingerprint

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"train-00000.bin": 300_000, "train-00001.bin": 200_001, "train-00002.bin": 100_000, "more/valid.bin": 50_000}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "toy-1"
    for number, (name, size) in enumerate(SIZES.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes((7 * i + number) % 251 for i in range(size)))
    manifest.write(folder, "toy", "1")
    return folder


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)


def stage_on_ranks(size: int, folder: Path, to: Path) -> list[staging.Staged | Exception]:
    """Stage with ``size`` ranks, which are threads, and return the result of each."""
    barrier, texts = threading.Barrier(size, timeout=60), [""] * size

    def rank(number: int) -> staging.Staged | Exception:
        def gather(text: str) -> list[str]:
            texts[number] = text
            barrier.wait()
            found = list(texts)
            barrier.wait()
            return found

        try:
            return stage(folder, to, local_rank=number, local_size=size, gather=gather)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank, range(size)))


def assert_same(folder: Path, staged: Path) -> None:
    for name in SIZES:
        assert (staged / name).read_bytes() == (folder / name).read_bytes()
    assert manifest.read(staged) == manifest.read(folder)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_ranks_of_a_node_divide_the_files(size: int, dataset: Path, tmp_path: Path) -> None:
    divided = shares(manifest.read(dataset), size)
    names = [name for share in divided for name in share]
    assert sorted(names) == sorted(SIZES)
    results = stage_on_ranks(size, dataset, tmp_path / "scratch")
    for share, result in zip(divided, results, strict=True):
        assert isinstance(result, staging.Staged)
        assert result.files == len(share)
        assert result.copied_bytes == sum(SIZES[name] for name in share)
        assert (result.kept_bytes, result.refused) == (0, ())
        assert_same(dataset, result.folder)
    loads = [sum(SIZES[name] for name in share) for share in divided]
    assert max(loads) - min(loads) <= max(SIZES.values())


def test_a_second_run_reads_the_copy_again_and_copies_nothing(dataset: Path, tmp_path: Path) -> None:
    first = stage(dataset, tmp_path / "scratch")
    times = {name: (first.folder / name).stat().st_mtime_ns for name in SIZES}
    again = stage(dataset, tmp_path / "scratch")
    assert (again.copied_bytes, again.kept_bytes) == (0, sum(SIZES.values()))
    assert {name: (first.folder / name).stat().st_mtime_ns for name in SIZES} == times


KILLED = """
import sys, time
from pathlib import Path
from ds4sci.datasets import checked_copy, staging

copied, write = [0], checked_copy._write_all

def pausing(descriptor, data):
    write(descriptor, data)
    copied[0] += len(data)
    if copied[0] > 350_000:  # the largest file and a part of the second
        Path(sys.argv[3]).touch()
        time.sleep(600)

checked_copy.BLOCK, checked_copy._write_all, staging.FILES_AT_ONCE = 40_000, pausing, 1
staging.stage(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_staging_resumes_without_copying_finished_files(dataset: Path, tmp_path: Path) -> None:
    sign, scratch = tmp_path / "sign", tmp_path / "scratch"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(dataset), str(scratch), str(sign)], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    wait_for(sign.exists, process)
    process.kill()
    process.wait()
    target = staged_folder(dataset, scratch, manifest.read(dataset))
    finished = target / "train-00000.bin"
    assert not (target / MANIFEST).exists()
    assert [path.name for path in target.iterdir() if path.is_file()] == [finished.name]
    half = (target / STATE / "train-00001.bin.partial").stat()
    assert 0 < half.st_size < SIZES["train-00001.bin"]
    before = finished.stat()
    staged = stage(dataset, scratch)
    assert staged.kept_bytes == SIZES["train-00000.bin"]
    assert staged.copied_bytes == sum(SIZES.values()) - SIZES["train-00000.bin"]
    after = finished.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert_same(dataset, staged.folder)
    assert not list((target / STATE).rglob("*.partial"))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "missing"])
def test_a_damaged_source_is_refused_by_every_rank(damage: str, dataset: Path, tmp_path: Path) -> None:
    name = "train-00001.bin"
    if damage == "flipped byte":
        flip(dataset / name)
    elif damage == "truncated":
        (dataset / name).write_bytes((dataset / name).read_bytes()[:-1])
    else:
        (dataset / name).unlink()
    results = stage_on_ranks(2, dataset, tmp_path / "scratch")
    assert len({str(result) for result in results}) == 1
    assert isinstance(results[0], ValueError)
    text = str(results[0])
    assert text.startswith("staging failed: ")
    assert str(dataset / name) in text
    if damage == "flipped byte":
        expected = manifest.read(dataset).files[name].sha256
        assert f"{dataset / name}: sha256 {fingerprint(dataset / name)['sha256']}, expected {expected}" in text
        assert text.endswith(f"make the dataset again with: ds4sci data get toy --to {dataset}")
    target = staged_folder(dataset, tmp_path / "scratch", manifest.read(dataset))
    assert not (target / name).exists()
    assert not (target / MANIFEST).exists()


@pytest.mark.parametrize("damage", ["flipped byte", "truncated"])
def test_a_damaged_staged_file_is_named_and_copied_again(damage: str, dataset: Path, tmp_path: Path) -> None:
    first = stage(dataset, tmp_path / "scratch")
    file = first.folder / "more" / "valid.bin"
    if damage == "flipped byte":
        flip(file)
        expected = f"{file}: sha256 {fingerprint(file)['sha256']}, expected"
    else:
        file.write_bytes(b"x")
        expected = f"{file}: 1 bytes, expected 50,000"
    results = stage_on_ranks(2, dataset, tmp_path / "scratch")
    refused = [text for result in results if isinstance(result, staging.Staged) for text in result.refused]
    assert len(refused) == 1
    assert refused[0].startswith(expected)
    assert_same(dataset, first.folder)


def test_other_content_gets_another_folder(dataset: Path, tmp_path: Path) -> None:
    first = stage(dataset, tmp_path / "scratch")
    flip(dataset / "train-00000.bin")
    manifest.write(dataset, "toy", "1")
    second = stage(dataset, tmp_path / "scratch")
    assert second.folder != first.folder
    assert_same(dataset, second.folder)


def test_two_runs_of_a_node_stage_the_same_dataset(dataset: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: stage(dataset, tmp_path / "scratch"), range(2)))
    assert results[0].folder == results[1].folder
    assert sum(result.copied_bytes for result in results) == sum(SIZES.values())
    assert_same(dataset, results[0].folder)


def test_too_little_space_and_a_missing_manifest(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 600_000})
    monkeypatch.setattr(store.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match=r"staging failed: .*scratch: 0\.6 MB free, but 0\.7 MB are needed"):
        stage(dataset, tmp_path / "scratch")
    usage.free = 10**9
    stage(dataset, tmp_path / "scratch")
    usage.free = 10
    stage(dataset, tmp_path / "scratch")  # everything is staged: no space is needed
    (dataset / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"staging failed: .*toy-1: not a dataset \(it has no manifest\.json"):
        stage(dataset, tmp_path / "scratch")


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000])
def test_checked_copy_of_every_length(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_copy, "BLOCK", 100)
    source, target = tmp_path / "a", tmp_path / "new" / "b"
    source.write_bytes(os.urandom(size))
    expected = FileSum(**fingerprint(source))
    checked_copy.copy_checked(source, target, expected)
    assert target.read_bytes() == source.read_bytes()
    for wrong in (FileSum(size + 1, expected.sha256), FileSum(-1, "0" * 64)):
        target.unlink(missing_ok=True)
        with pytest.raises(ValueError, match=r"/a: .*, expected"):
            checked_copy.copy_checked(source, target, wrong)
        assert not list(target.parent.iterdir())
