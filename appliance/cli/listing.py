"""What the commands that list things share: the paging and time options, and the way a page is printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from appliance.cli.tables import emit, table

F = TypeVar("F", bound=Callable[..., Any])


def paged(command: F) -> F:
    """Add ``--limit`` and ``--cursor``."""
    cursor = click.option("--cursor", metavar="TEXT", help="Go on where an earlier list ended.")
    limit = click.option(
        "--limit", type=click.IntRange(1), default=20, show_default=True, help="Most items to list, newest first."
    )
    return limit(cursor(command))


def moment(value: str) -> str:
    """A time as the API takes it, from RFC 3339 or a duration such as ``1h``, which means so long ago."""
    try:
        if value[:4].isdecimal() and value[4:5] == "-":
            when = datetime.fromisoformat(value.upper())
        else:
            from appliance.settings import parse_duration  # slow to import

            when = datetime.now(UTC) - parse_duration(value)
        if when.tzinfo is None:
            raise ValueError(value)
        return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):
        expected = "expected a time such as 2026-01-31T12:00:00Z, or a duration such as 1h (so long ago)"
        raise click.BadParameter(f"{expected}, got {value!r}") from None


def spanned(command: F) -> F:
    """Add ``--since`` and ``--until``."""
    until = click.option("--until", type=moment, metavar="TIME", help="Only before this time.")
    since = click.option(
        "--since", type=moment, metavar="TIME", help="Only from then on: 2026-01-31T12:00:00Z, or 1h for an hour ago."
    )
    return since(until(command))


def emit_page(page: dict[str, Any], columns: Sequence[str], *, empty: str, as_json: bool) -> None:
    """Print one page; the way to the next one goes to standard error, so that a table stays a table."""
    emit(page, table(page["items"], columns, empty=empty), as_json=as_json)
    if page.get("next_cursor") and not as_json:
        click.echo(f"more with --cursor {page['next_cursor']}", err=True)
