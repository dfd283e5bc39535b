"""What a run says: log lines on the console, metrics as JSON lines and to further sinks, a progress bar."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ziggurat.atomic import write_text
from ziggurat.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

log = logging.getLogger(__name__)

T = TypeVar("T")
Sink = Callable[[int, Mapping[str, Any]], None]
"""Takes one step's numbers."""


@cache
def console() -> Console:
    """The one console (standard error) that log lines and the progress bar share, so that neither breaks the other."""
    from rich.console import Console

    return Console(stderr=True)


def setup(*, level: int = logging.INFO, rank: int | None = None) -> None:
    """Log lines of this package to standard error; from rank 0 only (default: the environment's RANK), of the other
    ranks warnings. Calling it again replaces what was set up before."""
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    root = logging.getLogger("ziggurat")
    for old in [h for h in root.handlers if h.name == "ziggurat"]:
        root.removeHandler(old)
    handler: logging.Handler
    if rank == 0 and sys.stderr.isatty():
        from rich.logging import RichHandler

        handler = RichHandler(console=console(), show_path=False, show_level=False, log_time_format="[%X]")
    else:
        handler = logging.StreamHandler(sys.stderr)
        origin = "" if rank == 0 else f"rank {rank}: "
        handler.setFormatter(logging.Formatter(f"%(asctime)s {origin}%(message)s", "%H:%M:%S"))
    handler.name = "ziggurat"
    root.addHandler(handler)
    root.setLevel(level if rank == 0 else logging.WARNING)
    root.propagate = False


class Metrics:
    """A stage's numbers: one JSON line a step in `path`, flushed at once, and the same to every further sink.

    `after` is the step training continues from: lines of later steps, and a half-written last line, are removed first, so
    that no step stands twice. With 0 the file starts empty.
    """

    def __init__(self, path: str | Path, *, after: int = 0, sinks: Sequence[Sink] = ()):
        self.path, self.sinks = Path(path), tuple(sinks)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(self.path) if line["step"] <= after] if after else []
        write_text(self.path, "".join(map(_line, kept)))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """One step's numbers (step is counted from 1: after how many updates)."""
        plain = {name: _plain(value) for name, value in numbers.items()}
        self._file.write(_line({"step": step, **plain}))
        self._file.flush()
        for sink in self.sinks:
            sink(step, plain)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; none if there is no file. A line cut short by a crash ends the reading."""
    found: list[dict[str, Any]] = []
    path = Path(path)
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            numbers = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(numbers, dict) or "step" not in numbers:
            break
        found.append(numbers)
    return found


def _line(numbers: Mapping[str, Any]) -> str:
    return json.dumps(numbers, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Python numbers from numpy's and torch's; null for what is no number, since JSON has no NaN."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tensorboard(folder: str | Path, *, after: int = 0) -> Sink:
    """A sink that writes TensorBoard event files; later steps of an earlier attempt are hidden.

    Raises:
        UserError: the extra `tensorboard` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed", "pip install 'ziggurat[tensorboard]'") from None
    writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def sink(step: int, numbers: Mapping[str, Any]) -> None:
        for name, value in numbers.items():
            if isinstance(value, (int, float)):
                writer.add_scalar(name, value, step)
        writer.flush()

    return sink


class ProgressBar:
    """A stage's progress with loss, tokens a second and time left: a bar on a terminal, elsewhere a log line every
    `every` seconds, at the first report and at the last step."""

    def __init__(
        self, title: str, steps: int, *, start: int = 0, every: float = 30.0, clock: Callable[[], float] = time.monotonic
    ):
        self.title, self.steps, self.start, self.every, self.clock = title, steps, start, every, clock
        self._began = clock()
        self._said = -math.inf
        self._bar: Any = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        self._began = self.clock()
        if int(os.environ.get("RANK", "0")) == 0 and sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"))
            self._bar = Progress(*columns, console=console())
            self._task = self._bar.add_task(self.title, total=self.steps, completed=self.start, numbers="")
            self._bar.start()
        return self

    def show(self, step: int, numbers: Mapping[str, float]) -> None:
        """`step` updates are done; of `numbers`, `loss` and `tokens_per_second` are shown."""
        now = self.clock()
        left = (now - self._began) / max(step - self.start, 1) * (self.steps - step)
        parts = []
        if "loss" in numbers:
            parts.append(f"loss {numbers['loss']:.3f}")
        if "tokens_per_second" in numbers:
            parts.append(f"{numbers['tokens_per_second']:,.0f} tokens/s")
        text = "  ".join([*parts, f"{duration(left)} left"])
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=text)
        elif now - self._said >= self.every or step >= self.steps:
            self._said = now
            log.info("%s %d/%d (%.0f%%)  %s", self.title, step, self.steps, 100 * step / max(self.steps, 1), text)

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def counted(what: str, items: Iterable[T], *, every: float = 30.0, clock: Callable[[], float] = time.monotonic) -> Iterator[T]:
    """The same items; while they are drawn, a log line every `every` seconds says how many they were and how fast."""
    began = said = clock()
    for n, item in enumerate(items, 1):
        yield item
        now = clock()
        if now - said >= every:
            said = now
            log.info("%s: %s documents so far, %s a second", what, f"{n:,}", f"{n / (now - began):,.0f}")


def duration(seconds: float) -> str:
    """`45s`, `12m05s`, `3h07m`: a length of time for people."""
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"
