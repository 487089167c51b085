"""Every exception the appliance raises on purpose, ordered by what the caller should do about it.

::

    ApplianceError
    ├── ConfigurationError        the start stops; names file, line, key and what was expected
    │   └── DefinitionError       a workflow definition is refused; carries every problem found
    ├── Unavailable               a server is away or refuses: back off and try again (HTTP 503 with Retry-After)
    │   ├── StreamUnavailable     Redis/Valkey
    │   ├── StoreUnavailable      PostgreSQL
    │   └── Overloaded            our own limit: backlog, rate
    ├── Malformed                 the input can't be understood: HTTP 4xx, or set aside and acknowledged
    ├── NotFound                  HTTP 404
    ├── Conflict                  the thing is in a state that forbids the request: HTTP 409
    └── Fenced                    somebody else owns this work now: drop what was done, touch nothing
        └── LeaseLost             the entry's lease ran out or went to another replica

What a plugin raises (``Retry``, ``Reject``) is public and lives in :mod:`appliance.plugin`.
"""

from __future__ import annotations

from dataclasses import dataclass


class ApplianceError(Exception):
    """The root of the tree."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration or definition file.

    ``line`` and ``column`` count from 1; ``None`` where the input has no lines (JSON through the API).
    ``key`` is a dotted path (``steps[0].with.to``); ``expected`` says what to write instead.
    """

    message: str
    key: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None
    expected: str | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        text = ": ".join(part for part in (place, self.key, self.message) if part)
        return f"{text} (expected {self.expected})" if self.expected else text


class ConfigurationError(ApplianceError):
    """Configuration that can't be used. ``problems`` is never empty."""

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(Problem(p) if isinstance(p, str) else p for p in problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class DefinitionError(ConfigurationError):
    """A workflow definition that can't be used; what it replaces stays in force."""


class Unavailable(ApplianceError):
    """A server is away or refuses for now. ``retry_after_s`` is a hint in seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class StreamUnavailable(Unavailable):
    """Redis or Valkey can't be reached, or refuses the command (out of memory, read only, loading)."""


class StoreUnavailable(Unavailable):
    """PostgreSQL can't be reached, or can't take commits (read only, disk full, starting up)."""


class Overloaded(Unavailable):
    """A limit of our own says no: the backlog or a rate limit."""


class Malformed(ApplianceError):
    """Input that can't be understood. ``code`` is a stable, short identifier (``not-json``, ``too-deep`` …)."""

    def __init__(self, message: str, *, code: str = "malformed") -> None:
        self.code = code
        super().__init__(message)


class NotFound(ApplianceError):
    """There is no such thing."""


class Conflict(ApplianceError):
    """The thing is in a state that forbids the request."""


class Fenced(ApplianceError):
    """Somebody else owns this work now; what was computed here must not be written."""


class LeaseLost(Fenced):
    """The entry's lease ran out, or another replica has reclaimed it."""
