"""A double of the process that commands talk to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.cli.client import Answer, Client

Invoke = Callable[..., tuple[int, str, str]]
"""Runs a command line: its exit code, and what it wrote to standard output and to standard error."""


@dataclass
class Server:
    """Stands in for the process: answers in turn, and remembers what it was asked."""

    answers: list[Answer] = field(default_factory=list)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)

    def ask(
        self, client: Client, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        self.asked.append((method, path, body))
        self.headers.append(headers or {})
        return self.answers.pop(0)
