"""Getting, verifying and finding datasets, after kills, damage and in two processes at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ds4sci.datasets import manifest, registry, store
from ds4sci.datasets.dataset import MANIFEST, Dataset, Source
from ds4sci.files.atomic_files import fingerprint
from tests.support.archives import write_deb, write_wheel
from tests.support.toy_dataset import FILES, NAME

ROOT = Path(__file__).resolve().parents[2]
FIRST = "train-00000.bin"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DS4SCI_DATA", str(tmp_path / "store"))
    return tmp_path / "store"


def start(name: str, **variables: str) -> subprocess.Popen[str]:
    """Process that gets a dataset."""
    program = "import sys; from ds4sci.datasets import store; print(store.get(sys.argv[1]))"
    return subprocess.Popen(
        [sys.executable, "-c", program, name], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flip(file: Path, position: int = 100) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def test_a_dataset_is_made_once_and_verified(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_DATASET_LOG", str(tmp_path / "log"))
    assert store.verify(NAME) == [f"{home / 'toy_dataset-3'}: missing"]
    assert store.state(NAME) == ("absent", home / "toy_dataset-3")
    folder = store.get(NAME)
    assert folder == home / "toy_dataset-3"
    found = contents(folder)
    sums = json.loads(found.pop(MANIFEST))
    assert found == FILES
    assert sums == {
        "name": "toy_dataset",
        "version": "3",
        "files": {name: fingerprint(folder / name) for name in sorted(FILES)},
    }
    assert store.verify(NAME) == []
    assert store.get(NAME) == folder
    assert (tmp_path / "log").read_text() == "made\n"
    assert {path.name for path in home.iterdir()} == {"toy_dataset-3", ".toy_dataset-3.lock"}


def test_a_killed_get_leaves_nothing_that_counts(home: Path, tmp_path: Path) -> None:
    process = start(NAME, TOY_DATASET_PAUSE=str(tmp_path / "sign"))
    wait_for((tmp_path / "sign").exists)
    process.kill()
    process.wait()
    assert (home / ".toy_dataset-3.partial" / FIRST).exists()
    assert store.state(NAME)[0] == "absent"
    assert store.verify(NAME) != []
    with pytest.raises(ValueError, match="no such folder"):
        store.lookup(Path("toy_dataset-3"))
    assert contents(store.get(NAME)).keys() == {*FILES, MANIFEST}
    assert {path.name for path in home.iterdir()} == {"toy_dataset-3", ".toy_dataset-3.lock"}


def test_two_processes_make_it_once(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(NAME, TOY_DATASET_LOG=str(log)) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert outputs == [f"{home / 'toy_dataset-3'}\n"] * 2
    assert log.read_text() == "made\n"
    assert store.verify(NAME) == []


@pytest.mark.parametrize(
    "damage", ["flipped byte", "truncated", "missing", "no manifest", "manifest cut", "folder only"]
)
def test_a_damaged_file_is_named_and_made_again(damage: str) -> None:
    folder = store.get(NAME)
    file = folder / (MANIFEST if "manifest" in damage else FIRST)
    if damage == "flipped byte":
        flip(file)
    elif damage == "folder only":
        shutil.rmtree(folder)
        folder.mkdir()
        file = folder
    elif damage in ("truncated", "manifest cut"):
        file.write_bytes(file.read_bytes()[:50])
    else:
        file.unlink()
    if damage == "no manifest":
        file = folder
    (fault,) = store.verify(NAME)
    assert fault.startswith(f"{file}: ")
    if damage == "flipped byte":
        assert fault == (
            f"{file}: sha256 {fingerprint(file)['sha256']}, expected {manifest.read(folder).files[FIRST].sha256}"
        )
    said: list[str] = []
    assert store.get(NAME, log=said.append) == folder
    assert said[0] == f"refused: {fault}"
    assert store.verify(NAME) == []


def test_a_dataset_in_a_folder_of_the_users_choice(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "toy"
    assert store.get(NAME, to=folder) == folder
    assert store.verify(NAME, folder) == []
    assert store.lookup(folder) == folder
    flip(folder / FIRST)
    assert len(store.verify(NAME, folder)) == 1
    store.get(NAME, to=folder)
    assert store.verify(NAME, folder) == []
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(
        ValueError, match="mine: already exists and is not the dataset toy_dataset; choose a new folder"
    ):
        store.get(NAME, to=other)
    assert (other / "thesis.tex").exists()


def test_a_finished_dataset_is_copied_from_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror" / "toy_dataset-3"
    store.get(NAME, to=mirror)
    monkeypatch.setenv("TOY_DATASET_LOG", str(tmp_path / "log"))
    for number, named in enumerate((mirror, mirror.parent)):
        folder = store.get(NAME, to=tmp_path / f"copy{number}", mirror=named)
        assert contents(folder) == contents(mirror)
    assert not (tmp_path / "log").exists()
    flip(mirror / FIRST)
    with pytest.raises(ValueError, match=rf"toy_dataset-3/{FIRST}: sha256 \w+, expected \w+$"):
        store.get(NAME, to=tmp_path / "bad", mirror=mirror)
    assert not (tmp_path / "bad").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no manifest\.json of toy_dataset version 3.*Omit --from"):
        store.get(NAME, mirror=tmp_path / "empty")


def packaged(archive: Path, kind: str, monkeypatch: pytest.MonkeyPatch, fixed: dict[str, str]) -> Dataset:
    """Register the dataset ``packaged``, made of the member ``toydata/x.bin`` of an archive."""
    package, version = archive.stem.replace("-", "_").split("_")[:2]
    sums = fingerprint(archive)
    dataset = Dataset(
        name="packaged", version="1", title="", origin="", licence="", splits={}, size=0, files=fixed,
        sources=(Source(kind, package, version, sums["sha256"], sums["size"]),),
    )  # fmt: skip

    def make(folder: Path, sources: dict[str, Path]) -> None:
        from ds4sci.datasets.archives import extract

        extract(sources[package], folder, ["toydata/x.bin"])

    monkeypatch.setattr(registry, "find", lambda name: registry.Entry(dataset, make))  # type: ignore[arg-type]
    return dataset


@pytest.mark.parametrize("kind", ["wheel", "deb"])
def test_an_archive_in_a_mirror(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    files = {"toydata/x.bin": b"x" * 5000}
    if kind == "wheel":
        archive = write_wheel(mirror, "toydata", "1", files)
    else:
        archive = write_deb(mirror / "toydata_1_all.deb", files)
    packaged(archive, kind, monkeypatch, {})
    folder = store.get("packaged", mirror=mirror)
    assert (folder / "toydata" / "x.bin").read_bytes() == b"x" * 5000
    shutil.rmtree(folder)
    renamed = archive.rename(mirror / "download(1)")
    store.get("packaged", mirror=mirror)  # found by its size and sum
    shutil.rmtree(folder)
    renamed.rename(archive)
    flip(archive)
    with pytest.raises(ValueError, match=rf"refused: .*{archive.name}: sha256 \w+, expected \w+; replace it, or omit"):
        store.get("packaged", mirror=mirror)
    archive.unlink()
    with pytest.raises(ValueError, match=r"mirror: no file toydata[-_]1[-_]\*\.\w+; expected the .* and sha256 \w+"):
        store.get("packaged", mirror=mirror)
    with pytest.raises(ValueError, match="absent: no such folder"):
        store.get("packaged", mirror=tmp_path / "absent")
    assert not folder.exists()


def test_a_wheel_is_downloaded_with_pip(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip reads a folder instead of PyPI. A partial file of an earlier call is refused; an intact one is used."""
    index = tmp_path / "index"
    index.mkdir()
    archive = write_wheel(index, "toydata", "1", {"toydata/x.bin": b"x" * 5000})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    packaged(archive, "wheel", monkeypatch, {})
    downloads = home / ".packaged-1.download"
    downloads.mkdir(parents=True)
    (downloads / archive.name).write_bytes(archive.read_bytes()[:1000])
    said: list[str] = []
    store.get("packaged", log=said.append)
    assert said[0].startswith(f"refused: {downloads / archive.name}: 1,000 bytes, expected")
    assert store.verify("packaged") == []
    assert not downloads.exists()

    shutil.rmtree(home / "packaged-1")
    downloads.mkdir()
    shutil.copy(archive, downloads)
    archive.unlink()
    said.clear()
    store.get("packaged", log=said.append)
    assert said[0].endswith("downloaded earlier")
    shutil.rmtree(home / "packaged-1")
    with pytest.raises(ValueError, match=r"toydata 1 could not be downloaded: ERROR: .*toydata==1.* --from DIR"):
        store.get("packaged")
    write_wheel(index, "toydata", "1", {"toydata/x.bin": b"y" * 5000})
    with pytest.raises(ValueError, match=r"refused: .*\.whl: sha256 .* The package index or a proxy serves another"):
        store.get("packaged")
    assert not (home / "packaged-1").exists()
    assert not list(downloads.iterdir())


def test_a_debian_archive_is_downloaded_with_apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_deb(tmp_path / "toydata_1_all.deb", {"toydata/x.bin": b"x"})
    packaged(archive, "deb", monkeypatch, {})
    programs = tmp_path / "bin"
    programs.mkdir()
    apt = programs / "apt-get"
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(ValueError, match=r"toydata: apt-get is not installed.*Copy toydata_1_\*\.deb from a Debian"):
        store.get("packaged")
    assertion = 'assert sys.argv[1:] == ["download", "--quiet", "toydata=1"]'
    apt.write_text(f'#!{sys.executable}\nimport shutil, sys\n{assertion}\nshutil.copy({str(archive)!r}, ".")\n')
    apt.chmod(0o755)
    assert (store.get("packaged") / "toydata" / "x.bin").read_bytes() == b"x"


def test_an_installed_package_serves_if_the_result_has_fixed_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_wheel(tmp_path, "toydata", "1", {"toydata/x.bin": b"x" * 50})
    site = tmp_path / "site"
    shutil.unpack_archive(archive, site, "zip")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    fixed = {"toydata/x.bin": fingerprint(site / "toydata" / "x.bin")["sha256"]}
    packaged(archive, "wheel", monkeypatch, fixed)
    folder = store.get("packaged")
    assert store.verify("packaged") == []
    flip(site / "toydata" / "x.bin", 3)
    flip(folder / "toydata" / "x.bin", 3)
    with pytest.raises(ValueError, match=r"the files that were made differ: .*x\.bin: sha256 \w+, expected \w+"):
        store.get("packaged")
    packaged(archive, "wheel", monkeypatch, {})
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="could not be downloaded"):
        store.get("packaged")


def test_bundled_files_are_checked_in_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.get("lambda_phage") == ROOT / "examples" / "genome_lm" / "data"
    assert store.verify("lambda_phage") == []
    assert store.state("lambda_phage")[0] == "present"
    copy = store.get("lambda_phage", to=tmp_path / "copy")
    assert contents(copy).keys() == {MANIFEST, "lambda_phage.fa.gz"}
    assert store.verify("lambda_phage", copy) == []
    monkeypatch.setattr(store, "REPOSITORY", tmp_path / "installed")
    with pytest.raises(ValueError, match=r"lambda_phage\.fa\.gz: missing; .*from a checkout.*--from DIR"):
        store.get("lambda_phage")
    assert contents(store.get("lambda_phage", mirror=copy)) == contents(copy)
    bundled = tmp_path / "installed" / "examples" / "genome_lm" / "data"
    shutil.copytree(copy, bundled)
    flip(bundled / "lambda_phage.fa.gz")
    with pytest.raises(ValueError, match=r"lambda_phage\.fa\.gz: sha256 .*git checkout -- examples/genome_lm/data"):
        store.get("lambda_phage")


def test_lookup_names_the_command(home: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert store.lookup(tmp_path / "plain") == tmp_path / "plain"
    cases = {
        "lambda_phage-1": f"the dataset lambda_phage is not in {home}; get it with: ds4sci data get lambda_phage",
        "lambda_phage-7": "the dataset lambda_phage has version 1; expected lambda_phage-1",
        "lamda_phage-1": "did you mean 'lambda_phage'?",
        "lambda_phage": "did you mean 'lambda_phage'?",
        "qqq/zzz": "the datasets are listed by: ds4sci data list",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=rf"^data\.path = '{path}': no such folder, and ") as caught:
            store.lookup(Path(path))
        assert message in str(caught.value)
    folder = store.get(NAME)
    assert store.lookup(Path("toy_dataset-3")) == folder
    (folder / FIRST).unlink()
    with pytest.raises(ValueError, match=rf"{FIRST}: missing; get the dataset again with: ds4sci data get toy_dataset"):
        store.lookup(Path("toy_dataset-3"))
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match="not a dataset"):
        store.lookup(Path("toy_dataset-3"))


def test_too_little_space_is_reported_before_anything_is_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.find(NAME)
    huge = replace(entry.dataset, size=10**18)
    monkeypatch.setattr(registry, "find", lambda name: replace(entry, dataset=huge))
    with pytest.raises(ValueError, match=r"store: [\d,.]+ MB free, but 1,000,000,000,000\.0 MB are needed"):
        store.get(NAME)
    assert [path.name for path in home.iterdir()] == [".toy_dataset-3.lock"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"files": {}}', "unreadable: KeyError: 'name'"),
        ('{"name": "x", "version": "1", "files": {}}', "expected files, each with a SHA-256"),
        ('{"name": "x", "version": "1", "files": {"a": {"size": 1, "sha256": "0"}}}', "files, each with a SHA"),
        ('{"name": "x", "version": "1", "files": {"../a": {"size": 1, "sha256": "0"}}}', "'../a' is not a relative"),
        ('{"name": "x", "version": "1", "files": {"a": 5}}', "unreadable: TypeError"),
        ("[]", "unreadable"),
        ("{", "unreadable"),
    ],
)  # fmt: skip
def test_malformed_manifests_are_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json: ") as caught:
        manifest.read(tmp_path)
    assert message in str(caught.value)


def test_a_manifest_needs_regular_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no files; expected the files of the dataset x"):
        manifest.write(tmp_path, "x", "1")
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="link: is a link"):
        manifest.write(tmp_path, "x", "1")
