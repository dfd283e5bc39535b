"""One process a run folder, and what a signal does to it."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ziggurat.atomic import writing
from ziggurat.errors import Stopped, UserError

log = logging.getLogger(__name__)


class Signals:
    """SIGINT and SIGTERM. While held (a training loop) they are noted, and the loop saves and stops after its step; anywhere
    else they raise `Stopped` at once, for whatever is written there is written in one move. A second one ends the process."""

    def __init__(self) -> None:
        self.number = 0
        self._holding = False

    @contextmanager
    def held(self) -> Iterator[Callable[[], bool]]:
        """Gives the question whether a signal came in; raises `Stopped` at the end if one did."""
        self._holding = True
        try:
            yield lambda: bool(self.number)
        except Stopped:
            raise Stopped(self.number) from None
        finally:
            self._holding = False
        if self.number:
            raise Stopped(self.number)

    def take(self, number: int, frame: FrameType | None = None) -> None:
        """The handler."""
        if self.number:
            os._exit(128 + number)
        self.number = number
        if not self._holding:
            raise Stopped(number)
        log.warning("stopping after this step (again to stop at once)")


@contextmanager
def session(folder: Path) -> Iterator[Signals]:
    """A run at work in its folder: locked, signals taken, and what the machine refuses (a full disk) said plainly.

    Raises `UserError` when another process is at work there.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder), _taking() as signals:
            yield signals


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip()
            raise UserError(
                f"another process{f' ({who})' if who else ''} is at work in {folder}",
                "wait for it, or give this recipe another `name`",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def _taking() -> Iterator[Signals]:
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield signals
        return
    before = {number: signal.signal(number, signals.take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
