"""The errors of this package. Commands report each in one line and with its exit code."""


class PgMlxError(Exception):
    """An error that a person can understand and mend; its message is one line. Exit code 1 of a command."""

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))  # names in a message may hold anything, line breaks too


class InputError(PgMlxError, ValueError):
    """An input is wrong: a file, a value, a checkpoint. Exit code 2 of a command."""

    exit_code = 2


class UsageError(InputError):
    """Options are wrong whatever they are applied to, so several processes of one command line see the same error."""


class TooLarge(InputError):
    """An input may be sound, but it is over a limit."""
