"""Keeps the operator's secrets out of what is stored and logged about an attempt."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

MASK = "[secret]"
_SHORTEST = 6
"""Shorter values aren't masked, in characters: they would blot out ordinary text and protect nothing."""


class Redaction:
    """Masks every occurrence of the given secrets. Costs nothing when there are none."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # Longest first, so that a secret that contains another is masked whole.
        self._secrets = sorted({s for s in secrets if len(s) >= _SHORTEST}, key=lambda s: (-len(s), s))
        # A text's form inside JSON, where quotes and control characters are escaped.
        self._encoded = [orjson.dumps(s)[1:-1] for s in self._secrets]

    def text(self, text: str) -> str:
        """``text`` with the secrets masked."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text

    def data(self, value: Any, raw: bytes) -> Any:
        """JSON data with the secrets in its texts masked; ``raw`` is the same as orjson writes it."""
        return self.masked(value) if any(encoded in raw for encoded in self._encoded) else value

    def logger(self, logger: logging.Logger, extra: Mapping[str, Any]) -> logging.LoggerAdapter[logging.Logger]:
        """A logger for one attempt: ``extra`` stands in every line, and secrets are masked in all that it writes."""
        return _AttemptLogger(logger, extra, self)

    def masked(self, value: Any) -> Any:
        """JSON data with the secrets in its texts masked."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(name): self.masked(inner) for name, inner in value.items()}
        return [self.masked(inner) for inner in value] if isinstance(value, list) else value


class _AttemptLogger(logging.LoggerAdapter[logging.Logger]):
    def __init__(self, logger: logging.Logger, extra: Mapping[str, Any], redaction: Redaction) -> None:
        super().__init__(logger, extra)
        self._redaction = redaction

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        text = str(msg) % args if args else str(msg)
        if error := kwargs.pop("exc_info", None):
            text += "\n" + _traceback(error)
        given = {name: self._redaction.masked(value) for name, value in (kwargs.get("extra") or {}).items()}
        # Past LoggerAdapter, which would drop what the caller gave as extra.
        kwargs["extra"] = {**given, **(self.extra or {})}
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        self.logger.log(level, "%s", self._redaction.text(text), **kwargs)


def _traceback(error: Any) -> str:
    raised = error if isinstance(error, BaseException) else sys.exc_info()[1]
    return "".join(traceback.format_exception(raised)).rstrip() if raised is not None else ""
