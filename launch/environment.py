"""Setup of the virtual environment ``.venv``: ``python3 launch/environment.py``. Requires only the standard library.

The environment is up to date if its stamp (Python version, kind of machine, path, hash of ``setup.py`` and of the
constraints) equals the one expected for this checkout. The stamp is written last, so an interrupted installation is
repeated. A file lock makes concurrent callers wait for the first one.

Kinds of machine, and the source of torch:

cpu   versions in ``constraints-cpu.txt``. On PyPI the Linux wheel of torch is a CUDA build of several GB, so PyTorch's
      index of CPU builds is added if it is reachable (``2.13.0+cpu`` satisfies ``torch==2.13.0`` and sorts above it).
cuda  version ranges in ``setup.py``; torch from PyPI.
rocm  torch from PyTorch's index for the installed ROCm, then the other packages.

``DS4SCI_TORCH_INDEX=URL`` selects another index for torch (a mirror, or another CUDA or ROCm version).
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


def log(text: str) -> None:
    """Print a progress line with a prefix that distinguishes it from the output of pip."""
    print(f"[environment] {text}", flush=True)


def kind_of_machine() -> str:
    """Return ``cuda``, ``rocm`` or ``cpu``, detected by nvidia-smi and rocm-smi."""
    for kind, command in (("cuda", ["nvidia-smi", "--list-gpus"]), ("rocm", ["rocm-smi", "--showid"])):
        if shutil.which(command[0]):
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode == 0 and "GPU" in answer.stdout:
                return kind
    return "cpu"


def expected_stamp(kind: str) -> dict[str, str]:
    """Return the stamp of an environment that is up to date."""
    sources = [ROOT / "setup.py", *([CONSTRAINTS] if kind == "cpu" else [])]
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
    return {"python": platform.python_version(), "kind": kind, "root": str(ROOT), "requirements": digest}


def is_reachable(index: str) -> bool:
    """Whether a package index is reachable within a few seconds, through the proxy of the environment variables."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=REACH_SECONDS):
            return True
    except (urllib.error.URLError, OSError):
        return False


def pip(*arguments: str) -> None:
    """Run ``pip install`` of the environment and show its output. Exits with a message if pip fails."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    log("pip install " + " ".join(arguments))
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        sys.exit(
            "[environment] pip failed; see its messages above. Installation requires a network. The next call reuses "
            "what pip has already downloaded."
        )


def rocm_index() -> str:
    """Return PyTorch's index for the installed ROCm."""
    version = Path("/opt/rocm/.info/version")
    found = re.match(r"(\d+\.\d+)", version.read_text(encoding="utf-8")) if version.exists() else None
    if found is None:
        sys.exit(
            f"[environment] found an AMD GPU, but no ROCm version in {version}. Select the index of torch:\n"
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
    if is_reachable(index):
        extra = ["--extra-index-url", index]
    else:
        log(
            f"{index} is not reachable: torch comes from pip's default index. On PyPI that may be the CUDA build, which"
        )
        log("is several GB larger and works on a CPU. DS4SCI_TORCH_INDEX=URL selects a mirror of the CPU builds.")
    pip("--constraint", str(CONSTRAINTS), *extra, "--editable", ".[dev]")


def check_venv_module() -> None:
    """Exit with the name of the missing package on systems whose Python lacks ``ensurepip`` (Debian, Ubuntu)."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        package = "python3-venv" if sys.executable == "/usr/bin/python3" else f"python3.{sys.version_info.minor}-venv"
        sys.exit(
            f"[environment] {sys.executable} cannot create virtual environments (venv or ensurepip missing). Install:\n"
            f"  sudo apt-get update && sudo apt-get install -y {package}"
        )


def build_kernels() -> None:
    """Build the native kernels, which otherwise the first training step does; report a missing C++ compiler."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        log("no C++ compiler: native kernels and DeepSpeed's shared-memory collectives are disabled.")
        log("To enable them: sudo apt-get install -y g++")
        return
    program = "from ds4sci.kernels import native; native.build_all()"
    done = subprocess.run([str(VENV / "bin" / "python"), "-c", program], check=False)
    if done.returncode:
        log("the native kernels were not built (see above); plain torch takes their place where it can")


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the installation lock. The kernel releases it if its holder dies."""
    with (ROOT / ".venv.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("another process is creating the environment; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def read_stamp() -> dict[str, str]:
    """Return the stamp of ``.venv``; empty if there is none, as after an interrupted installation."""
    return json.loads(STAMP.read_text(encoding="utf-8")) if STAMP.exists() else {}


def make_venv(stamp: dict[str, str]) -> None:
    """Create an empty environment. If only its requirements have changed, keep it: pip updates it."""
    is_reusable = {**read_stamp(), "requirements": stamp["requirements"]} == stamp
    STAMP.unlink(missing_ok=True)
    if not is_reusable:
        base = getattr(sys, "_base_executable", sys.executable)  # not the .venv that is replaced here
        subprocess.run([base, *MAKE_VENV, str(VENV)], check=True)


def main() -> None:
    """Create or update ``.venv`` if it is not up to date."""
    stamp = expected_stamp(kind_of_machine())
    with locked():
        if read_stamp() == stamp:
            return
        check_venv_module()
        started = time.monotonic()
        log(f"creating {VENV} with Python {stamp['python']} for a {stamp['kind']} machine")
        make_venv(stamp)
        install(stamp["kind"])
        partial = STAMP.with_suffix(".part")
        partial.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
        partial.replace(STAMP)
        log(f"ready after {time.monotonic() - started:.0f} s")
        build_kernels()


if __name__ == "__main__":
    main()
