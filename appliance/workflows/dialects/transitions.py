"""The dialect of an email workflow engine: a state machine as a list of transitions.

::

    {"name": …, "initial_state": "pending", "final_states": […], "transitions": [
        {"from_state": "pending", "event": "APPROVED", "to_state": "paid", "condition": …, "actions": […]},
        {"from_state": "pending", "timeout": "48h", "to_state": "expired"}]}

Or the transitions stand with their states: ``{"states": {"pending": {"timeout": …, "transitions": [{"event", "to_state"
…}]}}}``. A request is begun by its workflow's name (``trigger: manual``) unless the document has a ``trigger``, and
known by the event's subject or ``data.request_id`` unless it has ``correlate``. A state that nothing leads out of ends
the request. Texts are templates of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from appliance.errors import DefinitionError
from appliance.workflows.dialects.actions import Given, duration, length, translate_action
from appliance.workflows.dialects.conditions import condition
from appliance.workflows.dialects.draft import Draft, Object, Translation, plain_id
from appliance.workflows.dialects.heads import body_of, head

NAME = "an email engine's state machine"
MARKS = "initial_state, transitions with from_state, event and to_state"
CORRELATE = "{{ event.data.request_id|default(event.subject) }}"
"""How a request is known, unless the document says so: a request's number beats a subject, which names a start."""
_TOP = ("initial_state", "states", "transitions", "final_states", "trigger", "correlate")
_FROM = ("from_state", "from", "source")
_TO = ("to_state", "to", "target", "next")
_EVENT = ("event", "event_type", "trigger")
_CONDITION = ("condition", "conditions", "guard")
_ACTION = ("actions", "action")
_TIME = ("timeout", "deadline", "after")
_ENTER = ("on_enter", "enter", "entry", "actions")
_STATE = ("name", "description", "transitions", "final", *_ENTER, *_TIME, "on_timeout")
_AS_WRITTEN = '{"type": action, "config": {…}}'


def recognises(document: Object) -> bool:
    """Whether ``document`` is in this dialect."""
    body, _ = body_of(document)
    if "initial_state" in body or isinstance(body.get("transitions"), list):
        return True
    states = body.get("states")
    inner = states.values() if isinstance(states, dict) else states if isinstance(states, list) else ()
    return any(isinstance(state, dict) and "transitions" in state for state in inner)


def translate(document: Object) -> Translation:
    """The workflow in our own language; raises DefinitionError."""
    body, prefix = body_of(document)
    draft = Draft(prefix)
    native = head(document, draft, _TOP)
    native["trigger"] = body.get("trigger", "manual")
    native["correlate"] = body.get("correlate", CORRELATE)
    native |= _Machine(body, draft).translated()
    if draft.problems:
        raise DefinitionError(*draft.problems)
    return draft.done(native, NAME)


class _Machine:
    """The translation of one machine's states. ``states`` are ours, by the source's names."""

    def __init__(self, body: Object, draft: Draft) -> None:
        self._body = body
        self._draft = draft
        self._prefix = draft.prefix
        self._states: dict[str, Object] = {}
        self._late: dict[str, tuple[str, str]] = {}
        self._transitions: list[tuple[str, Object, str]] = []

    def translated(self) -> Object:
        """``initial`` and ``states``."""
        self._declare()
        self._gather()
        finals = self._finals()
        for source, transition, key in self._transitions:
            for state in self._sources(source, key, finals):
                self._transition(state, transition, key)
        for state, (event, key) in self._late.items():
            self._by_event(state, event, key)
        initial = self._body.get("initial_state", self._body.get("initial"))
        if not isinstance(initial, str):
            self._draft.complain("no initial state", f"{self._prefix}initial_state", "the name of a state")
        elif initial not in self._states:
            self._no_state(initial, f"{self._prefix}initial_state")
        for name, native in self._states.items():
            if name in finals or not native.keys() & {"on", "deadline"}:
                native["final"] = True
            if "on" in native:
                native["on"] = {event: ways if len(ways) > 1 else ways[0] for event, ways in native["on"].items()}
        states = {self._id(name): native for name, native in self._states.items()}
        self._draft.at(states, f"{self._prefix}states")
        return self._draft.at({"initial": self._id(str(initial)), "states": states}, "")

    # --- what there is -----------------------------------------------------------------------------------------------

    def _declare(self) -> None:
        """The states that are listed, with what stands in them."""
        states = self._body.get("states") or []
        if isinstance(states, dict):
            named = [(name, state, f"{self._prefix}states.{name}") for name, state in states.items()]
        else:
            named = [
                (state.get("name") if isinstance(state, dict) else state, state, f"{self._prefix}states[{index}]")
                for index, state in enumerate(states if isinstance(states, list) else [states])
            ]
        for name, _, key in named:
            if isinstance(name, str):
                self._state(name, key)
            else:
                self._draft.complain("a state without a name", key, "a text, or an object with name")
        for name, state, key in named:
            if isinstance(name, str) and isinstance(state, dict):
                self._declare_one(name, state, key)

    def _declare_one(self, name: str, state: Object, key: str) -> None:
        draft, native = self._draft, self._state(name, key)
        draft.refuse_unknown(state, key, _STATE)
        if state.get("description"):
            native["description"] = state["description"]
        if state.get("final") is True:
            native["final"] = True
        if word := _first(state, _ENTER):
            native["enter"] = self._actions(state[word], f"{key}.{word}")
        for index, transition in enumerate(state.get("transitions") or []):
            if isinstance(transition, dict):
                self._transitions.append((name, transition, f"{key}.transitions[{index}]"))
            else:
                draft.complain("not a transition", f"{key}.transitions[{index}]", '{"event": …, "to_state": …}')
        if word := _first(state, _TIME):
            target = state.get("on_timeout")
            self._deadline(name, state[word], target, [], f"{key}.{word}")

    def _gather(self) -> None:
        """The transitions that are listed, with the states that they name."""
        transitions = self._body.get("transitions") or []
        if not isinstance(transitions, list):
            self._draft.complain("not a list", f"{self._prefix}transitions", "a list of transitions")
            transitions = []
        for index, transition in enumerate(transitions):
            key = f"{self._prefix}transitions[{index}]"
            if not isinstance(transition, dict) or (word := _first(transition, _FROM)) is None:
                self._draft.complain("not a transition", key, '{"from_state": …, "event": …, "to_state": …}')
                continue
            for source in transition[word] if isinstance(transition[word], list) else [transition[word]]:
                self._transitions.append((str(source), transition, key))
        if not self._body.get("states"):  # without a list, what transitions name are the states
            for source, transition, key in self._transitions:
                target = transition.get(_first(transition, _TO) or "")
                for name in (source, target):
                    if isinstance(name, str) and name != "*":
                        self._state(name, key)

    def _state(self, name: str, key: str) -> Object:
        if name not in self._states:
            self._states[name] = self._draft.at({}, key)
        return self._states[name]

    def _finals(self) -> set[str]:
        listed = self._body.get("final_states") or []
        for index, name in enumerate(listed if isinstance(listed, list) else []):
            if not isinstance(name, str) or name not in self._states:
                self._no_state(name, f"{self._prefix}final_states[{index}]")
        if listed:
            return {name for name in self._states if name in listed}
        leaving = {source for source, _, _ in self._transitions}
        return {name for name, state in self._states.items() if name not in leaving and "deadline" not in state}

    def _sources(self, source: str, key: str, finals: set[str]) -> list[str]:
        """The states that a transition leads out of; ``*`` is every one that isn't final."""
        if source == "*":
            return [name for name in self._states if name not in finals]
        if source in self._states:
            return [source]
        self._no_state(source, f"{key}.from_state")
        return []

    # --- transitions -------------------------------------------------------------------------------------------------

    def _transition(self, state: str, transition: Object, key: str) -> None:
        draft = self._draft
        draft.refuse_unknown(
            transition, key, (*_FROM, *_TO, *_EVENT, *_CONDITION, *_ACTION, *_TIME, "name", "description")
        )
        target_key, event_key = _first(transition, _TO), _first(transition, _EVENT)
        target = transition.get(target_key or "")
        word = _first(transition, _ACTION)
        steps = self._actions(transition[word], f"{key}.{word}") if word else []
        if (time := _first(transition, _TIME)) is not None:
            if event_key is not None or _first(transition, _CONDITION) is not None:
                expected = "two transitions: one with the event, one with the timeout"
                draft.complain("a timeout beside an event or a condition", f"{key}.{time}", expected)
            self._deadline(state, transition[time], target, steps, f"{key}.{time}")
            return
        if event_key is None or not isinstance(transition[event_key], str):
            draft.complain("a transition without an event", key, "event, or timeout")
            return
        if not isinstance(target, str) or target not in self._states:
            self._no_state(target, f"{key}.{target_key or 'to_state'}")
            return
        way: Object = {"next": self._id(str(target))}
        if (asked := _first(transition, _CONDITION)) is not None:
            way["when"] = self._condition(transition[asked], f"{key}.{asked}")
        if steps:
            way["do"] = steps
        draft.at(way, key, next=f"{key}.{target_key}", when=f"{key}.{asked}", do=f"{key}.{word}")
        ways = self._states[state].setdefault("on", {}).setdefault(transition[event_key], [])
        ways.append(way)

    def _deadline(self, state: str, time: Any, target: Any, steps: list[Object], key: str) -> None:
        """A state's time limit: ``"48h"``, or an object with a duration and where it leads (or which event it is)."""
        native: Object = {}
        if isinstance(time, dict):
            words = (*_TO, "event")
            native["after"] = duration(
                Given("delay", key, {k: v for k, v in time.items() if k not in words}, key), self._draft
            )
            target = time.get(_first(time, _TO) or "", target)
            if target is None and isinstance(time.get("event"), str):
                self._late[state] = (time["event"], key)
        else:
            native["after"] = length(time, key, self._draft)
        if "deadline" in self._states[state]:
            self._draft.complain(f"{state!r} has a timeout already", key, "one for each state")
        if state not in self._late:
            if not isinstance(target, str) or target not in self._states:
                self._no_state(target, key)
            native["next"] = self._id(str(target))
        if steps:
            native["do"] = steps
        self._states[state]["deadline"] = self._draft.at(native, key)

    def _by_event(self, state: str, event: str, key: str) -> None:
        """A deadline that counts as an event goes where that event leads."""
        ways = self._states[state].get("on", {}).get(event, [])
        if len(ways) != 1 or "when" in ways[0]:
            message = f"there is not exactly one transition without a condition for {event!r} in {state!r}"
            self._draft.complain(message, f"{key}.event", "to_state: the state that follows then")
            return
        self._states[state]["deadline"] |= {name: ways[0][name] for name in ("next", "do") if name in ways[0]}

    def _condition(self, spec: Any, key: str) -> Any:
        if isinstance(spec, str):
            expected = '{"path": "data.amount", "op": ">", "value": 100}, or JSON Logic'
            self._draft.complain("a condition in code can't be translated", key, expected)
            return {}
        return condition(spec, key, self._draft, "data")

    def _actions(self, actions: Any, key: str) -> list[Object]:
        native = []
        for index, action in enumerate(actions if isinstance(actions, list) else [actions]):
            inner = f"{key}[{index}]" if isinstance(actions, list) else key
            found = self._action(action, inner)
            if found:
                native.append(self._draft.at(found, inner))
        return self._draft.at(native, key)

    def _action(self, action: Any, key: str) -> Object:
        if isinstance(action, str):
            return translate_action(Given(action, key, {}, key), self._draft, lambda text, _: text)
        if not isinstance(action, dict):
            self._draft.complain("not an action", key, _AS_WRITTEN)
            return {}
        named = next((word for word in ("type", "action", "name") if isinstance(action.get(word), str)), None)
        inner = next((word for word in ("config", "params", "with") if isinstance(action.get(word), dict)), None)
        if named is None:
            self._draft.complain("an action without a name", key, _AS_WRITTEN)
            return {}
        if inner is not None:
            self._draft.refuse_unknown(action, key, (named, inner, "name"))
        values = action[inner] if inner is not None else {k: v for k, v in action.items() if k != named}
        place = f"{key}.{inner}" if inner is not None else key
        given = Given(action[named], f"{key}.{named}", values, place)
        return translate_action(given, self._draft, lambda text, _: text)

    def _id(self, name: str) -> str:
        return plain_id(name) if name not in self._states else self._draft.step_id(name)

    def _no_state(self, name: Any, key: str) -> None:
        self._draft.complain(f"there is no state {name!r:.80}", key, f"one of {', '.join(self._states)}")


def _first(given: Object, words: Iterable[str]) -> str | None:
    """Which of several keys that mean the same is there."""
    return next((word for word in words if given.get(word) is not None), None)
