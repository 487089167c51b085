"""Exit codes, and which exception means which; ``docs/cli.md`` prints the same table."""

from __future__ import annotations

from enum import IntEnum

import click

from appliance.errors import ApplianceError, ConfigurationError, Conflict, NotFound, Unavailable


class Exit(IntEnum):
    """What the shell sees."""

    OK = 0
    FAILED = 1
    """The command ran and the answer is no: a check failed, a request was refused."""
    USAGE = 2
    """The command line can't be understood."""
    NOT_FOUND = 3
    """There is no such thing, or its state forbids the request."""
    UNAVAILABLE = 4
    """The appliance, Redis or PostgreSQL can't be reached or refuses for now: try again later."""
    CONFIGURATION = 5
    """Settings or workflow definitions are wrong."""
    DENIED = 6
    """The API key is missing or wrong."""
    INTERRUPTED = 130
    """Ctrl-C (128 + SIGINT, as shells count)."""


class Failure(click.ClickException):
    """One clear line for standard error, and the exit code that goes with it."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: ApplianceError) -> Exit:
    """The exit code for one of the appliance's own exceptions."""
    if isinstance(error, ConfigurationError):
        return Exit.CONFIGURATION
    if isinstance(error, Unavailable):
        return Exit.UNAVAILABLE
    return Exit.NOT_FOUND if isinstance(error, NotFound | Conflict) else Exit.FAILED
