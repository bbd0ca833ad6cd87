"""Program that every rank runs: ``python -m ds4sci.train`` and ``launch/train.py``."""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task

USER_ERROR, NONFINITE = 2, 3
"""Exit codes after which a run is not restarted."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. DeepSpeed's launcher adds ``--local_rank``; the environment variable is what counts."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train the task of a run file on DeepSpeed.")
    parser.add_argument("--config", type=Path, help="run file (TOML)")
    parser.add_argument(
        "--deepspeed_config", type=Path, help="DeepSpeed JSON to use instead of the one that the run file names"
    )
    parser.add_argument("--deepspeed", action="store_true", help="accepted for compatibility; always on")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="run folder to resume")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=-1, help="set by the launcher")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override of the run file, such as train.steps=10"
    )
    options = parser.parse_args(arguments)
    if (options.config is None) == (options.resume is None):
        parser.error("give either --config TOML for a new run or --resume RUN to resume one")
    return options


def load(options: argparse.Namespace) -> RunConfig:
    """Load the configuration from the run file or from the run folder to resume, and check its data files.

    Errors found here come before DeepSpeed is imported and the ranks connect.
    """
    file = options.config
    if options.resume is not None:
        from ds4sci.train.launch import config_of_run

        try:
            file = config_of_run(options.resume)
        except ValueError as error:
            raise ValueError(f"--resume {error}") from None
    config = RunConfig.load(file, options.overrides, deepspeed=options.deepspeed_config)
    import_task(config.task.name).check_data(config.settings)
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and return the exit code.

    0 after the last step or an orderly stop; 2 for errors in settings or data, and 3 for too many non-finite steps,
    neither of which another start would mend; 1 for other errors. A watchdog exits with 75.
    """
    options = parse(arguments)
    is_main = os.environ.get("RANK", "0") == "0"
    try:
        config = load(options)
        from ds4sci.train.extension_builds import BuildError
        from ds4sci.train.loop import TooManyNonfiniteSteps
        from ds4sci.train.run import Session

        try:
            session = Session.join(config, resume=options.resume)
        except BuildError as error:
            print_error(f"error: {error}")
            return 1
        try:
            session.train()
        except Exception as error:
            # The launcher now sends SIGTERM to all ranks, and must not end this one before its record is written.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print_error(session.explain(error))
            if isinstance(error, TooManyNonfiniteSteps):
                return NONFINITE
            is_users = isinstance(error, ValueError) or (isinstance(error, OSError) and not session.has_begun)
            return USER_ERROR if is_users else 1
    except ValueError as error:
        # Until the run folder exists, every rank reads the same files and finds the same error; rank 0 prints it.
        print_error(f"error: {error}" if is_main else None)
        return USER_ERROR
    except KeyboardInterrupt:
        print_error("Interrupted; nothing was saved." if is_main else None)
        return 130
    return 0


def print_error(text: str | None) -> None:
    """Print ``text`` to stderr and flush; print nothing for None."""
    if text is not None:
        print(text, file=sys.stderr, flush=True)


def exit_process(code: int) -> None:
    """Destroy the process group, run exit handlers and end the process."""
    import torch.distributed as dist

    if dist.is_initialized() and code == 0:
        dist.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Interpreter teardown occasionally aborts the process after all work is done ("terminate called without an active
    # exception"), because threads of gloo are still running. os._exit skips that teardown.
    os._exit(code)


if __name__ == "__main__":
    exit_process(main())
