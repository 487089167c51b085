"""Texts that come from plugins, made such that PostgreSQL can keep them, whatever they are."""

from __future__ import annotations

import hashlib

MAX_TEXT = 2000
"""Longest text that is kept, in characters."""
MAX_NAME = 400
"""Longest name, in characters: names stand in indexes, whose rows end at 2,700 bytes."""


def text(value: object) -> str:
    """``value`` as a bounded text without NUL and lone surrogates; never raises."""
    plain = _plain(value)
    return _clean(plain if len(plain) <= MAX_TEXT else plain[:MAX_TEXT] + "…")


def name(value: object) -> str:
    """``value`` as a short text that stays distinct from others and is the same every time."""
    plain = _clean(_plain(value))
    if len(plain) <= MAX_NAME:
        return plain
    return f"{plain[: MAX_NAME - 20]}…{hashlib.blake2b(plain.encode(), digest_size=8).hexdigest()}"


def reason(error: BaseException) -> str:
    """Why a Retry or Reject was raised; its class's name when it doesn't say."""
    return text(getattr(error, "reason", error)) or type(error).__name__


def error(raised: BaseException) -> str:
    """Any exception as ``Class: text``."""
    said = text(raised)
    return f"{type(raised).__name__}: {said}" if said else type(raised).__name__


def _plain(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return "(its text can't be made)"


def _clean(plain: str) -> str:
    return plain.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
