"""What there is to listen for: which runs an event may concern, told without asking the database for most events.

Every kind of waiting in any revision (an event type and the paths of the values to match, or a state machine's
business key) has a *shape*, a row in ``listeners``. An event and a shape give a *digest*, and so do a waiting run and
its shape: who has the same one is told. Values are compared as texts, so that 42 from a webhook is "42" from a form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from appliance.identifiers import key_uuid
from appliance.rules.logic import resolve
from appliance.rules.matcher import fits, is_glob
from appliance.templating import Template, TemplateError, compile_template
from appliance.workflows.revision import Step, Workflow

_MAX_TYPES = 4096
"""Event types whose shapes are remembered; types come from senders, so there is no end to them."""
_MAX_KEY = 1024
"""Longest business key, in characters: it stands in an index."""


class Shape(NamedTuple):
    """One kind of waiting. Of a state machine ``machine`` is the workflow's name, ``correlate`` the key's template."""

    events: tuple[str, ...]
    paths: tuple[str, ...] = ()
    machine: str | None = None
    correlate: str | None = None

    @property
    def digest(self) -> str:
        """What names the shape: its key in the database."""
        return key_uuid("shape", self.to_json())

    def to_json(self) -> str:
        """As it is stored."""
        return orjson.dumps(tuple(self)).decode()


def shape_from(stored: Sequence[Any]) -> Shape:
    """The reverse of :meth:`Shape.to_json`, decoded."""
    events, paths, machine, correlate = stored
    return Shape(tuple(events), tuple(paths), machine, correlate)


def shapes_of(workflow: Workflow) -> list[Shape]:
    """Everything that runs of this workflow may listen for."""
    shapes = [wait_shape(step) for step in workflow.steps if step.wait is not None]
    if workflow.machine is not None:
        shapes.append(machine_shape(workflow))
    return list(dict.fromkeys(shapes))


def wait_shape(step: Step) -> Shape:
    """The shape of a ``wait`` step."""
    wait = step.wait
    return Shape(wait.events, tuple(path for path, _ in wait.match)) if wait is not None else Shape(())


def machine_shape(workflow: Workflow) -> Shape:
    """The shape of a state machine: the events that some state takes, and those that start it."""
    machine = workflow.machine
    if machine is None:
        raise ValueError(f"{workflow.name} is no state machine")
    events = dict.fromkeys([*machine.events, *(trigger.event for trigger in workflow.triggers)])
    return Shape(tuple(events), (), workflow.name, str(workflow.definition.get("correlate", "")))


def wait_digest(shape: Shape, values: Iterable[Any]) -> str:
    """What a run that waits for these values listens to."""
    return key_uuid("wait", shape.digest, *(_text(value) for value in values))


def machine_digest(workflow: str, business_key: str) -> str:
    """What the state machine of a business key listens to."""
    return key_uuid("machine", workflow, business_key)


def business_key(correlate: Template, view: Mapping[str, Any]) -> str | None:
    """A state machine's key of an event; None when the event has none (a missing or empty value)."""
    try:
        key = correlate.render({"event": view})
    except TemplateError:
        return None
    text = _text(key) if key not in (None, "") else ""
    return text if 0 < len(text) <= _MAX_KEY else None


class Listeners:
    """The shapes of all revisions, by event type. Immutable: replaced as a whole."""

    def __init__(self, shapes: Iterable[Shape] = ()) -> None:
        self._exact: dict[str, list[Shape]] = {}
        self._globs: list[Shape] = []
        self._correlate: dict[Shape, Template] = {}
        for shape in shapes:
            for event in shape.events:
                if not is_glob(event):
                    self._exact.setdefault(event, []).append(shape)
            if any(is_glob(event) for event in shape.events):
                self._globs.append(shape)
            if shape.correlate is not None:
                self._correlate[shape] = compile_template(shape.correlate, key="correlate", allowed=("event",))
        self._known: dict[str, tuple[Shape, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._exact or self._globs)

    def wants(self, event_type: str) -> bool:
        """Whether anybody may wait for events of this type."""
        return bool(self._of(event_type))

    def digests(self, view: Mapping[str, Any]) -> list[str]:
        """What those who are to be told of an event listen to; empty for most events."""
        if not self._exact and not self._globs:
            return []
        digests = [self._digest(shape, view) for shape in self._of(str(view["type"]))]
        return list(dict.fromkeys(digest for digest in digests if digest is not None))

    def _of(self, event_type: str) -> tuple[Shape, ...]:
        known = self._known.get(event_type)
        if known is None:
            if len(self._known) >= _MAX_TYPES:
                self._known.clear()
            globs = [shape for shape in self._globs if any(fits(event, event_type) for event in shape.events)]
            known = self._known[event_type] = tuple(dict.fromkeys([*self._exact.get(event_type, ()), *globs]))
        return known

    def _digest(self, shape: Shape, view: Mapping[str, Any]) -> str | None:
        if shape.machine is not None:
            key = business_key(self._correlate[shape], view)
            return None if key is None else machine_digest(shape.machine, key)
        values = [resolve(view, path.removeprefix("event.")) for path in shape.paths]
        return None if any(value is None for value in values) else wait_digest(shape, values)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
