"""Flow control of a workflow: how many runs of it may be at work, how often runs begin, which events share one.

Each part may have a key, a template of the event (``"{{ event.data.tenant }}"``): what it limits is then counted for
each value of its own. Events for which the key has no value, or can't be rendered, share the key ``null``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import orjson

from appliance.errors import Problem
from appliance.identifiers import key_uuid
from appliance.settings import format_duration
from appliance.templating import Template, TemplateError, has_expression
from appliance.workflows.models import LimitModel, WorkflowModel
from appliance.workflows.values import Values

LANE = "lane"
"""Among the keys of a run: between whom places are shared fairly."""
_MAX_KEY_SHOWN = 200
_NO_LIMIT = 1_000_000
_NO_VALUE = "null"


class Key(NamedTuple):
    """One value of a key: ``digest`` (a UUID) tells workflows, parts and values apart; ``text`` is for people."""

    digest: str
    text: str


@dataclass(frozen=True, slots=True)
class Slots:
    """Runs that may be at work at once for each key. ``part``: ``concurrency.0``, ``ordering`` or ``singleton``.

    ``keeps``: a slot is kept until the run is over; otherwise it is given back whenever the run is parked.
    """

    part: str
    limit: int
    key: Template | None = None
    keeps: bool = False


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``limit`` runs in ``period_s`` seconds from the first one on; events beyond that start none."""

    limit: int
    period_s: float
    key: Template | None = None


@dataclass(frozen=True, slots=True)
class Throttle:
    """Runs begin at most ``limit`` in ``period_s`` seconds, evenly, after ``limit + burst`` at once; others wait."""

    limit: int
    period_s: float
    burst: int = 0
    key: Template | None = None


@dataclass(frozen=True, slots=True)
class Debounce:
    """One run for the last of several events, ``period_s`` seconds after it, or ``timeout_s`` after the first."""

    period_s: float
    timeout_s: float | None = None
    key: Template | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """One run for up to ``size`` events, ``timeout_s`` seconds after the first at the latest."""

    size: int
    timeout_s: float
    key: Template | None = None


@dataclass(frozen=True, slots=True)
class Singleton:
    """One run of each key: an event that comes meanwhile starts none (``skip``), or ends the other (``replace``)."""

    mode: Literal["skip", "replace"]
    key: Template | None = None


@dataclass(frozen=True, slots=True)
class FlowControl:
    """All that a workflow says. ``slots`` has the parts that limit how many runs are at work."""

    slots: tuple[Slots, ...] = ()
    rate_limit: RateLimit | None = None
    throttle: Throttle | None = None
    debounce: Debounce | None = None
    batch: Batch | None = None
    singleton: Singleton | None = None
    ordered: bool = field(default=False)
    """Whether ``slots`` has the part ``ordering``: runs of a key begin in the order of their entries."""

    lane: Slots | None = field(init=False, default=None)
    """Between whose keys places are shared fairly: the part that runs keep, else the last one with a key."""
    _counted: tuple[tuple[str, Template | None], ...] = field(init=False, default=(), repr=False)
    """Every part that counts by a key, with that."""

    def __post_init__(self) -> None:
        kept = next((slots for slots in self.slots if slots.keeps), None)
        lane = kept or next((slots for slots in reversed(self.slots) if slots.key is not None), None)
        parts: dict[str, Any] = {"rate_limit": self.rate_limit, "throttle": self.throttle, "debounce": self.debounce}
        parts |= {"batch": self.batch, "singleton": self.singleton, **{slots.part: slots for slots in self.slots}}
        object.__setattr__(self, "lane", lane)
        object.__setattr__(
            self, "_counted", tuple((part, said.key) for part, said in parts.items() if said is not None)
        )

    def limited_by(self, other: FlowControl | None) -> FlowControl:
        """The same with the limits that ``other`` has for these parts; what it doesn't have has none."""
        limits = {slots.part: slots.limit for slots in other.slots} if other is not None else {}
        return replace(
            self, slots=tuple(replace(slots, limit=limits.get(slots.part, _NO_LIMIT)) for slots in self.slots)
        )

    def keys(self, workflow_id: int, names: Mapping[str, Any]) -> dict[str, Key]:
        """By part the key of a run, and with :data:`LANE` that of its lane. ``names``: ``event`` and ``input``."""
        found = {part: key_of(workflow_id, part, key, names) for part, key in self._counted}
        lane = self.lane
        found[LANE] = found[lane.part] if lane is not None else key_of(workflow_id, LANE, None, names)
        return found


def key_of(workflow_id: int, part: str, template: Template | None, names: Mapping[str, Any]) -> Key:
    """The key of a run or event in one part of flow control. ``names`` are ``event`` (its view) and ``input``."""
    if template is None:
        return _of_all(workflow_id, part)
    text = _text_of(template, names)
    if text is None:  # one part less: whatever a text says, it is told from this
        return Key(key_uuid("flow", str(workflow_id), part), _NO_VALUE)
    shown = text[:_MAX_KEY_SHOWN].encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return Key(key_uuid("flow", str(workflow_id), part, text), shown)


@lru_cache(maxsize=10_000)
def _of_all(workflow_id: int, part: str) -> Key:
    """The key where all events are one."""
    return Key(key_uuid("flow", str(workflow_id), part, ""), "")


def _text_of(template: Template, names: Mapping[str, Any]) -> str | None:
    """A key's value as a text: of numbers, lists and objects their JSON. None: there is none, or nothing to be had."""
    try:
        value = template.render(names)
        if isinstance(value, str):
            return value or None
        return None if value is None else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except (TemplateError, TypeError):  # TypeError: a number beyond 64 bits
        return None


def compiled(model: WorkflowModel, values: Values) -> FlowControl | None:
    """What a definition says about flow control; None if nothing. Problems are added to those of ``values``."""
    said = [name for name in PARTS if getattr(model, name) is not None]
    if not said:
        return None
    values.problems += _misplaced(model, said)

    def key(part: str, text: str | None) -> Template | None:
        return _key(values, text, f"{part}.key")

    rate_limit, throttle, debounce, batch, singleton = None, None, None, None, None
    if (rate := model.rate_limit) is not None:
        rate_limit = RateLimit(rate.limit, rate.period.total_seconds(), key("rate_limit", rate.key))
    if (pace := model.throttle) is not None:
        throttle = Throttle(pace.limit, pace.period.total_seconds(), pace.burst, key("throttle", pace.key))
    if (quiet := model.debounce) is not None:
        timeout_s = quiet.timeout.total_seconds() if quiet.timeout is not None else None
        debounce = Debounce(quiet.period.total_seconds(), timeout_s, key("debounce", quiet.key))
    if (many := model.batch) is not None:
        batch = Batch(many.size, many.timeout.total_seconds(), key("batch", many.key))
    if (single := model.singleton) is not None:
        mode, text = (single, None) if isinstance(single, str) else (single.mode, single.key)
        singleton = Singleton(mode, key("singleton", text))
    slots = tuple(_slots(model, values, singleton))
    return FlowControl(slots, rate_limit, throttle, debounce, batch, singleton, model.ordering_key is not None)


PARTS = ("concurrency", "ordering_key", "rate_limit", "throttle", "debounce", "batch", "singleton")
"""The keys of a workflow that are flow control."""


_NOT_TOGETHER = (
    ("debounce", "batch", "one keeps the last event, the other all of them", "one of the two"),
    ("singleton", "batch", "a batch would lose all its events at once", "one of the two"),
    ("rate_limit", "batch", "a batch would lose all its events at once", "throttle, for how often batches begin"),
    ("singleton", "ordering_key", "one leaves out what the other keeps", "one of the two"),
    ("debounce", "ordering_key", "what is collected begins when its time is up", "one of the two"),
    ("batch", "ordering_key", "what is collected begins when its time is up", "concurrency: {key, limit: 1}"),
)


def _slots(model: WorkflowModel, values: Values, singleton: Singleton | None) -> Iterator[Slots]:
    given = model.concurrency
    listed = isinstance(given, list)
    for index, limit in enumerate(given if isinstance(given, list) else [given] if given is not None else []):
        at = f"concurrency[{index}]" if listed else "concurrency"
        if isinstance(limit, LimitModel):
            yield Slots(f"concurrency.{index}", limit.limit, _key(values, limit.key, f"{at}.key"))
        else:
            yield Slots(f"concurrency.{index}", limit)
    if model.ordering_key is not None:
        yield Slots("ordering", 1, _key(values, model.ordering_key, "ordering_key", one_for_all=True), keeps=True)
    if singleton is not None:
        yield Slots("singleton", 1, singleton.key, keeps=True)


def _key(values: Values, text: str | None, at: str, *, one_for_all: bool = False) -> Template | None:
    """A key as a template. Without an expression it is the same for all events: with ``one_for_all`` a word may be."""
    if text is None:
        return None
    if not has_expression(text) and not (one_for_all and text.isalnum()):
        values.problems.append(
            Problem("no expression: the same for all events", at, expected='an expression: "{{ event.data.tenant }}"')
        )
    return values.template(text, at, None, ("event", "input"))


def _misplaced(model: WorkflowModel, said: list[str]) -> Iterator[Problem]:
    """What can't stand together."""
    if model.states is not None:
        for name in said:
            message = f"{name} can't be used with states: a state machine has one run of each key already"
            yield Problem(message, name, expected=f"{name} in a workflow with steps, which the machine may call")
    for first, second, why, expected in _NOT_TOGETHER:
        if first in said and second in said:
            yield Problem(f"{first} and {second} can't be used together: {why}", second, expected=expected)
    debounce = model.debounce
    if debounce is not None and debounce.timeout is not None and debounce.timeout < debounce.period:
        expected = f"at least {format_duration(debounce.period)}, the period"
        yield Problem("timeout is shorter than period", "debounce.timeout", expected=expected)
