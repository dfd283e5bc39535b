"""The one error users see."""


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


def check(condition: object, message: str, hint: str = "") -> None:
    """Raise `UserError(message, hint)` unless `condition` holds. For users' input; `assert` is for our own bugs."""
    if not condition:
        raise UserError(message, hint)
