"""The one error users see, and the exception that ends a run after a signal."""


class UserError(Exception):
    """A mistake the user can mend: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with 2. Everything else that escapes is a
    bug of ours and keeps its traceback.
    """

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class Starved(UserError):
    """Texts in which an objective finds nothing to ask. Training cannot go on with such; of held-out text it means that a number is missing."""


class Stopped(BaseException):
    """A signal asked the run to stop, and everything is saved. Like `KeyboardInterrupt` it passes every `except Exception`."""

    def __init__(self, signal: int = 2):
        super().__init__(signal)
        self.signal = signal

    @property
    def code(self) -> int:
        """The exit code that shells expect: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + self.signal


def check(condition: object, message: str, hint: str = "") -> None:
    """Raise `UserError(message, hint)` unless `condition` holds. For users' input; `assert` is for our own bugs."""
    if not condition:
        raise UserError(message, hint)
