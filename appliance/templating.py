"""Templates: parameters with ``{{ expressions }}``, compiled when a revision is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.errors import ApplianceError


class TemplateError(ApplianceError):
    """A template can't be rendered with the data at hand; ``key`` is the parameter (``with.to``)."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(f"{key}: {message}")


class Template:
    """A compiled value: text, number, list or mapping, with expressions anywhere in it."""

    __slots__ = ("is_literal", "names")

    is_literal: bool
    """Whether there is nothing to render."""
    names: frozenset[str]
    """Ids of the steps that expressions name (``steps.<id>``)."""

    def render(self, context: Mapping[str, Any]) -> Any:
        """The value with every expression evaluated; raises TemplateError."""
        raise NotImplementedError
