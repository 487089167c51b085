"""Query parameters: known names only, checked values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from starlette.requests import Request

from appliance.http.operations import Parameter
from appliance.http.problems import parameter_problem
from appliance.identifiers import is_uuid
from appliance.store.history import Span

MAX_LIMIT = 200
DEFAULT_LIMIT = 50

LIMIT = Parameter("limit", f"Most items on the page: 1 to {MAX_LIMIT}, {DEFAULT_LIMIT} if left out.")
CURSOR = Parameter("cursor", "The next_cursor of the page before.")
SINCE = Parameter("since", "Not before this time (RFC 3339).")
UNTIL = Parameter("until", "Before this time (RFC 3339).")


def parameters_of(request: Request, known: Iterable[Parameter]) -> dict[str, str]:
    """The parameters that were given, by name; a problem for an unknown, repeated, empty or wrong one."""
    by_name = {parameter.name: parameter for parameter in known}
    values: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in by_name:
            raise parameter_problem(name[:80], f"unknown; there is {_listed(by_name)}.")
        if name in values:
            raise parameter_problem(name, "given more than once.")
        _check(by_name[name], value)
        values[name] = value
    return values


def page_of(values: Mapping[str, str]) -> tuple[str | None, int]:
    """The cursor and the limit."""
    text = values.get("limit", str(DEFAULT_LIMIT))
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= MAX_LIMIT):
        raise parameter_problem("limit", f"expected a number from 1 to {MAX_LIMIT}.")
    return values.get("cursor"), int(text)


def uuid_cursor(values: Mapping[str, str]) -> None:
    """Refuse a cursor that no page of these lists gave."""
    if "cursor" in values and not is_uuid(values["cursor"]):
        raise parameter_problem("cursor", "not one that a page gave.")


def span_of(values: Mapping[str, str]) -> Span:
    """The time span between ``since`` and ``until``."""
    return Span(_ms(values, "since"), _ms(values, "until"))


def filters_of(values: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Those of ``names`` that were given."""
    return {name: value for name, value in values.items() if name in names}


def _check(parameter: Parameter, value: str) -> None:
    if not value or "\0" in value:
        raise parameter_problem(parameter.name, "empty, or with a NUL in it.")
    if parameter.choices and value not in parameter.choices:
        raise parameter_problem(parameter.name, f"expected one of {', '.join(parameter.choices)}.")


def _ms(values: Mapping[str, str], name: str) -> int | None:
    if name not in values:
        return None
    try:
        # A plus sign that was not percent-encoded arrives as a space.
        when = datetime.fromisoformat(values[name].replace(" ", "+").upper())
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise parameter_problem(name, "expected an RFC 3339 time with an offset, such as 2026-01-31T12:00:00Z.")
    try:
        return int(when.timestamp() * 1000)
    except OverflowError:
        raise parameter_problem(name, "no such time.") from None


def _listed(names: Collection[str]) -> str:
    return ", ".join(names) or "none"
