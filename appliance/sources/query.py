"""What can be said of a query without its database: it must be one SELECT that leaves window, order and limit to us."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""
      --[^\n]*                                          # a comment
    | /\*.*?(?:\*/|\Z)
    | [eE]'(?:[^'\\]|\\.|'')*(?:'|\Z)                   # texts and quoted names
    | '(?:[^']|'')*(?:'|\Z)
    | "(?:[^"]|"")*(?:"|\Z)
    | \$(?P<tag>[A-Za-z_]\w*|)\$.*?(?:\$(?P=tag)\$|\Z)
    | (?P<parameter>%\([^)]*\)s|\$\d+)
    | (?P<word>[A-Za-z_][\w$]*)
    | (?P<sign>[();])
    """,
    re.VERBOSE | re.DOTALL,
)
_BEGINS = ("select", "with")
_OURS = {
    "limit": "batch says how many rows are read at a time",
    "offset": "the cursor says where to go on",
    "fetch": "batch says how many rows are read at a time",
    "for": "rows of a source are only read",
    "into": "rows of a source are only read",
}
"""Words that may not stand at the outermost level, and why."""


def wrong_with(query: str) -> str | None:
    """What is wrong with a query, or None."""
    depth = 0
    first = None
    for kind, text in _tokens(query):
        if kind == "parameter":
            return f"{text} has no place here: the window, order and limit are added around the query"
        if text == ";":
            return "one statement, without a semicolon"
        depth += {"(": 1, ")": -1}.get(text, 0)
        if depth < 0:
            return "a bracket is closed that was not opened"
        if kind == "word" and depth == 0:
            first = first or text
            if text in _OURS:
                return f"{text.upper()} doesn't belong here: {_OURS[text]}"
    if depth:
        return "a bracket is not closed"
    return None if first in _BEGINS else "it must begin with SELECT or WITH"


def _tokens(query: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(query):
        if match.lastgroup in ("parameter", "word", "sign"):
            yield match.lastgroup, match.group().lower()
