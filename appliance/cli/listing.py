"""What the commands that list things share: the paging and time options, and the way a page is printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def spanned(command: F) -> F:
    """Add ``--since`` and ``--until``."""
    until = click.option("--until", metavar="TIME", help="Only before this time.")
    since = click.option("--since", metavar="TIME", help="Only from this time on (RFC 3339: 2026-01-31T12:00:00Z).")
    return since(until(command))


def emit_page(page: dict[str, Any], columns: Sequence[str], *, empty: str, as_json: bool) -> None:
    """Print one page; the way to the next one goes to standard error, so that a table stays a table."""
    emit(page, table(page["items"], columns, empty=empty), as_json=as_json)
    if page.get("next_cursor") and not as_json:
        click.echo(f"more with --cursor {page['next_cursor']}", err=True)
