"""Make the virtual environment ``.venv``, or reuse it: ``python3 launch/environment.py``. Standard library only.

The environment is current when its stamp (Python, kind of machine, place, hash of ``setup.py`` and of the constraints)
equals what this checkout asks for; the stamp is written last, so an interrupted installation is simply done again.
A file lock makes concurrent callers wait for the first one.

Kinds of machine, and where torch comes from:

cpu   versions of ``constraints-cpu.txt``. On PyPI the Linux wheel of torch is a CUDA build of several GB, so PyTorch's
      own index of CPU builds is added where it answers (``2.13.0+cpu`` satisfies ``torch==2.13.0`` and sorts above it).
cuda  ranges of ``setup.py``, torch from PyPI.
rocm  torch from PyTorch's index for the installed ROCm, then the rest.

``DS4SCI_TORCH_INDEX=URL`` names another index to take torch from (a mirror, another CUDA or ROCm version).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "ds4sci-environment.json"
CONSTRAINTS = ROOT / "constraints-cpu.txt"
INDEXES = "https://download.pytorch.org/whl"
REACH_SECONDS = 6
MAKE_VENV = ["-m", "venv", "--clear"]


def say(text: str) -> None:
    """A line of progress, told apart from what pip prints."""
    print(f"[environment] {text}", flush=True)


def kind_of_machine() -> str:
    """``cuda``, ``rocm`` or ``cpu``, by what answers here; no Python package is needed to ask."""
    for kind, command in (("cuda", ["nvidia-smi", "--list-gpus"]), ("rocm", ["rocm-smi", "--showid"])):
        if shutil.which(command[0]):
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode == 0 and "GPU" in answer.stdout:
                return kind
    return "cpu"


def wanted(kind: str) -> dict[str, str]:
    """What the stamp of a current environment says."""
    sources = [ROOT / "setup.py", *([CONSTRAINTS] if kind == "cpu" else [])]
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
    return {"python": platform.python_version(), "kind": kind, "root": str(ROOT), "requirements": digest}


def answers(index: str) -> bool:
    """Whether a package index can be reached; tried for a few seconds, through the proxy the environment names."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=REACH_SECONDS):
            return True
    except (urllib.error.URLError, OSError):
        return False


def pip(*arguments: str) -> None:
    """Run the environment's pip with its progress in sight."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    say("pip install " + " ".join(arguments))
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        sys.exit(
            "[environment] pip failed; its messages stand above. Without a network: run once where there is one. "
            "The next call goes on from what is already downloaded."
        )


def rocm_index() -> str:
    """PyTorch's index for the ROCm installed here."""
    version = Path("/opt/rocm/.info/version")
    found = re.match(r"(\d+\.\d+)", version.read_text(encoding="utf-8")) if version.exists() else None
    if found is None:
        sys.exit(
            f"[environment] an AMD GPU is here but {version} does not say which ROCm. Choose torch's index yourself:\n"
            f"  DS4SCI_TORCH_INDEX={INDEXES}/rocm6.4 bash launch/test.sh"
        )
    return f"{INDEXES}/rocm{found[1]}"


def install(kind: str) -> None:
    """Install ds4sci (editable) with its development extra into ``.venv``."""
    chosen = os.environ.get("DS4SCI_TORCH_INDEX", "").rstrip("/")
    if kind != "cpu":
        if chosen or kind == "rocm":
            pip("--index-url", chosen or rocm_index(), "torch<2.14")
        pip("--editable", ".[dev]")
        return
    index = chosen or f"{INDEXES}/cpu"
    extra: list[str] = []
    if answers(index):
        extra = ["--extra-index-url", index]
    else:
        say(f"{index} does not answer: torch comes from pip's usual index. On PyPI that may be the CUDA build, several")
        say("GB larger and as good on a CPU; DS4SCI_TORCH_INDEX=URL names a mirror of the CPU builds.")
    pip("--constraint", str(CONSTRAINTS), *extra, "--editable", ".[dev]")


def check_venv_module() -> None:
    """Debian and Ubuntu ship Python without ``ensurepip``; say which package brings it."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        package = "python3-venv" if sys.executable == "/usr/bin/python3" else f"python3.{sys.version_info.minor}-venv"
        sys.exit(
            f"[environment] {sys.executable} cannot make virtual environments (no venv or ensurepip module). Install:\n"
            f"  sudo apt-get update && sudo apt-get install -y {package}"
        )


def note_missing_compiler() -> None:
    """The compiler is optional: say once what it brings."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        say("no C++ compiler: everything works, native kernels and DeepSpeed's shared-memory collectives are left out.")
        say("To have them: sudo apt-get install -y g++")


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One installer at a time; the kernel drops the lock with its holder, so a killed one leaves nothing stuck."""
    with (ROOT / ".venv.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is making the environment; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def read_stamp() -> dict[str, str]:
    """The stamp in ``.venv``; empty when there is none, as after an interrupted installation."""
    return json.loads(STAMP.read_text(encoding="utf-8")) if STAMP.exists() else {}


def make_venv(stamp: dict[str, str]) -> None:
    """A bare environment; one whose requirements alone are stale is kept, and pip brings it up to date."""
    kept = {**read_stamp(), "requirements": stamp["requirements"]} == stamp
    STAMP.unlink(missing_ok=True)
    if not kept:
        base = getattr(sys, "_base_executable", sys.executable)  # not the .venv that is about to be replaced
        subprocess.run([base, *MAKE_VENV, str(VENV)], check=True)


def main() -> None:
    """Bring ``.venv`` up to date."""
    stamp = wanted(kind_of_machine())
    with locked():
        if read_stamp() == stamp:
            return
        check_venv_module()
        started = time.monotonic()
        say(f"making {VENV} with Python {stamp['python']} for a {stamp['kind']} machine")
        make_venv(stamp)
        install(stamp["kind"])
        aside = STAMP.with_suffix(".part")
        aside.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
        aside.replace(STAMP)
        say(f"ready after {time.monotonic() - started:.0f} s")
        note_missing_compiler()


if __name__ == "__main__":
    main()
