"""What happened while a source was read: rows, documents, and the rows that had to be left out."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ziggurat.errors import UserError

log = logging.getLogger(__name__)

BAD_ROWS = 100
BAD_SHARE = 0.001
"""A source may lose `max(BAD_ROWS, BAD_SHARE * rows read so far)` rows before reading stops with an error."""

EXAMPLES = 5
"""Bad rows that are named one by one in the warning and in the error."""


class BadRow(Exception):
    """A row that is left out. `reason` is one of a few phrases (they are counted), `detail` belongs to this row."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass
class Reading:
    """The account of one pass over a source. Filled while the documents are drawn, whole when they are exhausted."""

    allowed: int | None = None
    """Bad rows after which reading stops; None means max(100, 0.1% of the rows)."""
    rows: int = 0
    documents: int = 0
    """Documents handed out."""
    empty: int = 0
    """Rows whose text is empty: left out, but no mistake."""
    elsewhere: int = 0
    """Rows that `where` leaves out."""
    skipped: int = 0
    """Bad rows left out."""
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    """The first bad rows, as `file:line: reason (detail)`."""

    def bad(self, where: str, row: BadRow) -> None:
        """Count a bad row; past the limit, `UserError` with the first few by name."""
        if row.reason == "empty text":
            self.empty += 1
            return
        self.skipped += 1
        self.reasons[row.reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{where}: {row.reason}" + (f" ({row.detail})" if row.detail else ""))
        limit = max(BAD_ROWS, int(BAD_SHARE * self.rows)) if self.allowed is None else self.allowed
        if self.skipped > limit:
            raise UserError(f"{self._summary()}; the limit is {limit}", self._hint())

    def finish(self, name: str) -> None:
        """One warning when rows were left out; `UserError` when most were."""
        if self.skipped > self.rows / 2 and self.allowed is None:
            raise UserError(f"{name}: {self._summary()}", self._hint())
        if self.skipped or self.empty:
            more = f"; {self.empty} of {self.rows} rows have no text" if self.empty else ""
            log.warning("%s: %s%s", name, self._summary(), more)

    def _summary(self) -> str:
        counts = ", ".join(f"{n} x {reason}" for reason, n in self.reasons.most_common())
        lines = "".join(f"\n  {example}" for example in self.examples)
        return f"{self.skipped} of {self.rows} rows cannot be read{f' [{counts}]' if counts else ''}{lines}"

    def _hint(self) -> str:
        if self.reasons and self.reasons.most_common(1)[0][0] == NOT_UTF8:
            return "say which encoding the file has (encoding: latin-1), or convert it to UTF-8"
        return "mend the rows, or set bad_rows to the number of rows you are ready to lose"


NOT_UTF8 = "not valid UTF-8"


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` when one of `names` looks like `name`, otherwise nothing."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
