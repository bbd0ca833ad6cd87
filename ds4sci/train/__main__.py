"""``python -m ds4sci.train``, ``launch/train.py``: the program that every rank runs."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ds4sci.config import RunConfig


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; DeepSpeed's launcher adds ``--local_rank``, which the environment says too."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train what a run file describes, on DeepSpeed.")
    parser.add_argument("--config", type=Path, help="run file (TOML)")
    parser.add_argument("--deepspeed_config", type=Path, help="DeepSpeed JSON that replaces the one the run file names")
    parser.add_argument("--deepspeed", action="store_true", help="accepted for DeepSpeed's sake; it is always on")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="run folder to go on with; needs nothing else")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=-1, help="set by the launcher")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.steps=10")
    options = parser.parse_args(arguments)
    if (options.config is None) == (options.resume is None):
        parser.error("give --config TOML for a new run, or --resume RUN to go on with one")
    return options


def load(options: argparse.Namespace) -> RunConfig:
    """The run's config: from the run file, or from the folder to resume."""
    file = options.config
    if options.resume is not None:
        file = options.resume / "config.json"
        if not file.is_file():
            raise ValueError(f"--resume {options.resume}: no run folder there (it has no config.json)")
    return RunConfig.load(file, options.overrides, deepspeed=options.deepspeed_config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; returns the exit code. What goes wrong is printed once, by the rank where it went wrong first."""
    from ds4sci.train.run import train

    options = parse(arguments)
    is_main = os.environ.get("RANK", "0") == "0"
    try:
        config = load(options)
    except ValueError as error:  # every rank reads the same files: one of them says it
        if is_main:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    try:
        train(config, resume=options.resume)
        return 0
    except BaseException as error:
        return report(error, is_main)


def report(error: BaseException, is_main: bool) -> int:
    """Print what ended this rank; errors that all ranks share are printed by rank 0 alone."""
    text = str(error)
    if isinstance(error, (ValueError, OSError)) and "Traceback" not in text:
        if is_main:
            print(f"error: {text}", file=sys.stderr, flush=True)
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 130
    print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    return 1


def leave(code: int) -> None:
    """End this process in order."""
    import torch.distributed as dist

    if dist.is_initialized() and code == 0:
        dist.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of gloo that are still being torn down when the interpreter's globals go abort the process now and then
    # ("terminate called without an active exception") after all work is done; so the process goes without that.
    os._exit(code)


if __name__ == "__main__":
    leave(main())
