"""Members of wheels and Debian archives."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from ds4sci.datasets.archives import extract, safe_name
from tests.support.archives import write_deb, write_wheel

FILES = {"usr/share/a.bin": b"a" * 70_001, "usr/share/b.bin": b"b"}
NAMES = ["./usr/share/b.bin", "usr/share/a.bin"]


@pytest.mark.parametrize("kind", ["whl", "deb xz", "deb gz", "deb plain", "folder"])
def test_members_are_extracted_in_the_given_order(kind: str, tmp_path: Path) -> None:
    archive = tmp_path / "installed"
    if kind == "whl":
        archive = write_wheel(tmp_path, "toy", "1", FILES)
    elif kind == "folder":
        for name, data in FILES.items():
            (archive / name).parent.mkdir(parents=True, exist_ok=True)
            (archive / name).write_bytes(data)
    else:
        archive = write_deb(tmp_path / "toy_1_all.deb", FILES, compression={"plain": ""}.get(kind[4:], kind[4:]))
    out = tmp_path / "out"
    paths = extract(archive, out, NAMES)
    assert paths == [out / "usr/share/b.bin", out / "usr/share/a.bin"]
    assert [path.read_bytes() for path in paths] == [FILES["usr/share/b.bin"], FILES["usr/share/a.bin"]]
    with pytest.raises(ValueError, match=r"has no file usr/share/c\.bin"):
        extract(archive, out, [*NAMES, "usr/share/c.bin"])


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_an_archive_made_by_dpkg_deb_is_read(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr" / "a.bin").write_bytes(FILES["usr/share/a.bin"])
    for compression in ("xz", "zstd"):
        archive = tmp_path / f"toy_{compression}.deb"
        done = subprocess.run(["dpkg-deb", f"-Z{compression}", "--build", str(tree), str(archive)], capture_output=True)
        if done.returncode == 0:  # an old dpkg-deb writes no zstd
            (path,) = extract(archive, tmp_path / compression, ["usr/a.bin"])
            assert path.read_bytes() == FILES["usr/share/a.bin"]
    assert (tmp_path / "xz" / "usr" / "a.bin").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".", "a\\x", "a\0x"])
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a relative path inside"):
        safe_name(name)


def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    archive = write_wheel(tmp_path, "toy", "1", {"../evil": b"x"})
    with pytest.raises(ValueError, match=r"'\.\./evil' is not a relative path"):
        extract(archive, tmp_path / "out", ["../evil"])
    assert not (tmp_path / "evil").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    deb = write_deb(tmp_path / "toy_1_all.deb", FILES, links={"usr/link": "/etc/passwd"})
    with pytest.raises(ValueError, match=r"toy_1_all\.deb: usr/link is not a regular file"):
        extract(deb, tmp_path / "out", ["usr/link"])
    wheel = tmp_path / "toy.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match=r"toy\.whl: link is not a regular file"):
        extract(wheel, tmp_path / "out", ["link"])
    assert not list((tmp_path / "out").rglob("*link"))


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    deb = write_deb(tmp_path / "toy_1_all.deb", FILES)
    whole = deb.read_bytes()
    cases = {
        "neither a wheel": b"x" * 1000,
        "ends after the end of the file": whole[:-200],
        "malformed ar header": whole[:30],
        "without data.tar": whole[:72],
        "damaged archive": whole[:-150] + bytes(byte ^ 0x55 for byte in whole[-150:]),
    }
    for message, content in cases.items():
        deb.write_bytes(content)
        with pytest.raises(ValueError, match=rf"toy_1_all\.deb: .*{message}"):
            extract(deb, tmp_path / "out", NAMES)
    wheel = write_wheel(tmp_path, "toy", "1", FILES)
    content = bytearray(wheel.read_bytes())
    content[200] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(ValueError, match=r"\.whl: damaged archive: Bad CRC-32"):
        extract(wheel, tmp_path / "out", NAMES)
