"""Progress of a run: a bar with losses on a terminal, plain lines elsewhere. Only rank 0 prints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text


class Progress:
    """Display of step, loss terms, last evaluation, samples/s, time left and memory. A context manager.

    shown  False on all ranks except 0, where every method does nothing
    """

    def __init__(self, steps: int, *, shown: bool) -> None:
        self.steps, self.step, self.start = steps, 0, 0
        self._began = time.monotonic()
        self._shown = shown
        self._console = Console()
        self._line = self._evaluation = ""
        self._bar = Bar(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left"), console=self._console,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=steps, completed=0, left="?")
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._shown and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._render)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def log(self, text: str) -> None:
        """Print a message above the bar."""
        if self._shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def resume_at(self, step: int) -> None:
        """Start the count at ``step``."""
        self.step = self.start = step
        self._bar.update(self._task, completed=step)

    def advance(self, step: int) -> None:
        """Show that ``step`` is done."""
        self.step = step
        if self._live is not None:
            self._bar.update(self._task, completed=step, left=_duration(self.seconds_left()))

    def set_activity(self, text: str) -> None:
        """Set the label of the bar: ``training``, ``evaluating``, …"""
        if self._live is not None:
            self._bar.update(self._task, description=text)

    def show_losses(
        self, values: dict[str, float], *, samples_per_second: float, memory_mb: float, rates: dict[str, float]
    ) -> None:
        """Show the mean losses of the last interval; ``values["loss"]`` is the total."""
        terms = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        speed = f"{samples_per_second:.2f} samples/s"
        if "tokens_per_second" in rates:
            share = f" ({rates['utilization']:.0%} of peak)" if "utilization" in rates else ""
            speed = f"{rates['tokens_per_second']:,.0f} tokens/s{share}"
        self._line = f"{terms} · {speed} · {memory_mb:,.0f} MB"
        if self._live is None:
            self.log(f"step {self.step}/{self.steps} · {self._line} · {_duration(self.seconds_left())} left")

    def show_evaluation(self, step: int, values: dict[str, float], seconds: float) -> None:
        """Show the metrics of an evaluation."""
        text = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        self._evaluation = f"evaluation at step {step}: {text} ({seconds:.0f} s)"
        if self._live is None:
            self.log(self._evaluation)

    def seconds_left(self) -> float | None:
        """Estimate the time left from the mean speed since this process started, including evaluations."""
        done = self.step - self.start
        return (time.monotonic() - self._began) / done * (self.steps - self.step) if done else None

    def _render(self) -> Group:
        return Group(self._bar, Text(self._line), Text(self._evaluation))


@contextlib.contextmanager
def progress_bar(what: str, total: int, *, shown: bool, unit: str = "chains") -> Iterator[Callable[[], None]]:
    """Show a bar over ``total`` units. Yields a function that advances it by one."""
    columns = (
        TextColumn(f"{what} {unit}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, disable=not shown) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{whole % 60:02d} min"
