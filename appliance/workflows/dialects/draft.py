"""A translation under way: what comes of it, what is wrong with it, and where each part of it stood in the source."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from appliance.errors import Problem
from appliance.workflows.graph import RESERVED, hint

Object = dict[str, Any]
_Part = TypeVar("_Part")
_ID_LENGTH = 56
"""Of a step's 64 characters; the rest is for a number behind it."""


@dataclass(frozen=True, slots=True)
class Translation:
    """A definition in our own language. ``dialect`` is None if it was written so.

    ``places`` says by a key of ours (``steps[0].with.to``) at which key of the source it stood.
    """

    native: Object
    dialect: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)

    def source_key(self, key: str, known: Container[str]) -> str:
        """Where in the source that stands which has ``key`` in the translation; ``known`` are the source's keys.

        Where it has no place of its own, that of the nearest part around it.
        """
        if self.dialect is None:
            return key
        near = key
        while near and near not in self.places:
            near = around(near)
        place = self.places.get(near, "")
        whole = (place + (key[len(near) :] if near else f".{key}")).lstrip(".")
        return whole if whole in known else place


class Draft:
    """A translation under way; its result counts only if there are no problems."""

    def __init__(self, prefix: str = "") -> None:
        self._problems: dict[Problem, None] = {}
        self.prefix = prefix
        """Where the definition stands in its document: ``definition.``, mostly nowhere."""
        self._origins: dict[int, dict[str, str]] = {}
        self._kept: list[Any] = []
        self._ids: dict[str, str] = {}
        self._taken: dict[str, int] = {}

    @property
    def problems(self) -> list[Problem]:
        """All that can't be translated, each once."""
        return list(self._problems)

    def complain(self, message: str, key: str, expected: str | None = None) -> None:
        """Note that what stands at ``key`` can't be translated; ``expected`` is what to write instead."""
        self._problems[Problem(message, key, expected=expected)] = None

    def refuse_unknown(self, given: Mapping[str, Any], key: str, known: Iterable[str]) -> None:
        """Complain of every key of ``given``, which stands at ``key``, that is none of ``known``."""
        names = list(known)
        for name in given:
            if name not in names:
                self.complain(f"unknown key {name!r}{hint(name, names)}", f"{key}.{name}".lstrip("."), _listed(names))

    def at(self, part: _Part, key: str, **inner: str) -> _Part:
        """Note that ``part`` (an object or a list) was written at ``key``, and its members at ``inner``; returns it."""
        self._kept.append(part)  # so that no other object gets its identity
        self._origins.setdefault(id(part), {}).update({"": key, **inner})
        return part

    def joined(self, part: Object, other: Object, key: str, **inner: str) -> Object:
        """``part`` with the members of ``other``, which keep their places, written at ``key``."""
        whole = part | other
        self.at(whole, key, **{name: place for name, place in self._origins.get(id(other), {}).items() if name})
        self.at(whole, key, **inner)
        return whole

    def step_id(self, name: str) -> str:
        """The id of the step that the source calls ``name``: the same for the same name, and no other's."""
        if name not in self._ids:
            self._ids[name] = self.fresh_id(name)
        return self._ids[name]

    def knows(self, name: str) -> bool:
        """Whether the source's ``name`` has a step's id already."""
        return name in self._ids

    def fresh_id(self, name: str) -> str:
        """An id like ``name`` that no step has yet."""
        own = plain_id(name)
        number = self._taken.get(own, 0) + 1
        while (found := own if number == 1 else f"{own}_{number}") in self._taken:
            number += 1
        self._taken[own] = number
        self._taken.setdefault(found, 1)
        return found

    def done(self, native: Object, dialect: str) -> Translation:
        """The finished translation."""
        return Translation(native, dialect, dict(self._places(native, "")))

    def _places(self, part: Any, key: str) -> Iterator[tuple[str, str]]:
        origins = self._origins.get(id(part), {})
        if key and "" in origins:
            yield key, origins[""]
        members: Iterable[tuple[str, str, Any]] = ()
        if isinstance(part, dict):
            members = ((name, f"{key}.{name}" if key else name, value) for name, value in part.items())
        elif isinstance(part, list):
            members = ((str(index), f"{key}[{index}]", value) for index, value in enumerate(part))
        for name, inner, value in members:
            if name and name in origins:
                yield inner, origins[name]
            yield from self._places(value, inner)


def plain_id(name: str) -> str:
    """``name`` with what an id of a step can't hold replaced by ``_``."""
    own = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:_ID_LENGTH]
    if not own[:1].isalpha() and own[:1] != "_":
        own = f"step_{own}"
    return f"{own}_step" if own in RESERVED else own


def around(key: str) -> str:
    """The key of what a part stands in: ``steps[0]`` for ``steps[0].id``, nothing for ``steps``."""
    return key[: max(key.rfind("."), key.rfind("["), 0)]


def keys_of(document: Any, key: str = "") -> Iterator[str]:
    """Every dotted key of a document: ``steps``, ``steps[0]``, ``steps[0].id`` …."""
    if isinstance(document, dict):
        for name, value in document.items():
            inner = f"{key}.{name}" if key else str(name)
            yield inner
            yield from keys_of(value, inner)
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield f"{key}[{index}]"
            yield from keys_of(value, f"{key}[{index}]")


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else ", ".join(names[:12]) + " …"
