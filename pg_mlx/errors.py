"""The ways a request can fail, as the commands report them."""


class PgMlxError(Exception):
    """Something a person can understand and mend; the message is one line. Exit code 1 at a command."""

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))  # names in a message may hold anything, line breaks too


class InputError(PgMlxError, ValueError):
    """What was given is wrong: a file, a value, a checkpoint. Exit code 2 at a command."""

    exit_code = 2


class TooLarge(InputError):
    """What was given may be sound, but is over a limit."""
