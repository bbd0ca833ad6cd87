"""``python -m ds4sci.train``, ``launch/train.py``: the program that every rank runs."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ds4sci.config.run_file import RunConfig


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
    """Train; returns the exit code: 0 also after a stop in order, 2 for what the user can mend, 1 otherwise."""
    options = parse(arguments)
    is_main = os.environ.get("RANK", "0") == "0"
    try:
        config = load(options)
        from ds4sci.train.extension_builds import BuildError
        from ds4sci.train.run import Session

        try:
            session = Session.join(config, resume=options.resume)
        except BuildError as error:
            print_error(f"error: {error}")
            return 1
        try:
            session.train()
        except Exception as error:
            print_error(session.explain(error))
            return 2 if isinstance(error, (ValueError, OSError)) else 1
    except ValueError as error:
        # Up to the run folder every rank reads the same files and finds the same fault: one of them says it.
        print_error(f"error: {error}" if is_main else None)
        return 2
    except KeyboardInterrupt:
        print_error("Interrupted; nothing was saved" if is_main else None)
        return 130
    return 0


def print_error(text: str | None) -> None:
    """Print to stderr, at once."""
    if text is not None:
        print(text, file=sys.stderr, flush=True)


def exit_process(code: int) -> None:
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
    exit_process(main())
