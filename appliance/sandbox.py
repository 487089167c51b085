"""The Jinja2 environment of templates: no way out, no clock, no chance, and no template that eats the process.

What can grow is bounded where it grows: the source, every text or list that an expression makes, the turns of loops
and the output. Nothing is computed while a template is compiled (left alone, Jinja2 folds constants, so that
``{{ 9**9**9 }}`` never finishes compiling). Statements that could build on each other (``set``, macros, blocks) don't
exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import orjson
from jinja2 import StrictUndefined, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_OUTPUT = 1_048_576
"""Characters that one rendering may produce, intermediate texts included."""
MAX_TURNS = 10_000
"""Turns of all loops in one rendering."""
_MAX_BITS = 4096
"""Size of a whole number."""
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        ["lower", "upper", "title", "capitalize", "strip", "lstrip", "rstrip", "split", "startswith", "endswith"]
    ),
    dict: frozenset(["get", "items", "keys", "values"]),
    list: frozenset(["index", "count"]),
}
_PLAIN_FILTERS = """
    abs capitalize count d default dictsort first float int items last length list lower map max min reject rejectattr
    reverse select selectattr sort string striptags title trim truncate unique upper wordcount
"""
_NODES = """
    Template Output TemplateData Const Name Getattr Getitem Slice Concat Compare Operand CondExpr And Or Not Neg Pos
    Add Sub Mul Div FloorDiv Mod Pow If For Filter Test Call Keyword List Tuple Dict Pair
"""
_left: ContextVar[list[int]] = ContextVar("left")


class Undefined(StrictUndefined):
    """A missing value: every use is an error, except ``default`` and ``is defined``, also further down a path."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__":
            raise AttributeError(name)
        return self

    def __getitem__(self, name: Any) -> Any:
        return self


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment; one instance serves the process."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            undefined=Undefined,
            autoescape=False,
            optimized=False,
            finalize=as_text,
            cache_size=0,
            keep_trailing_newline=True,
        )
        self.globals = {}
        self.filters = {name: FILTERS[name] for name in _PLAIN_FILTERS.split()}
        self.filters |= {name: _charged(FILTERS[name]) for name in ("replace", "urlencode", "e", "escape")}
        self.filters |= {
            "join": _join,
            "round": _round,
            "sum": _sum,
            "tojson": _tojson,
            _TURN: _turns,
            _CONCAT: _concat,
        }

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``a.b``: an object's key before anything else, so that a field named ``items`` is that field."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``a['b']``: only ever an object's key."""
        if isinstance(obj, Mapping):
            return obj[argument] if argument in obj else self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Few methods of texts, objects and lists; of anything else no attribute at all."""
        if isinstance(obj, StrictUndefined):
            return True
        return attr in _METHODS.get(type(obj), ()) or (type(obj).__name__ == "LoopContext" and attr[:1] != "_")

    def wrap_str_format(self, value: Any) -> None:
        """No ``format``: a width in a format is a bomb."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic on numbers; ``+`` also joins texts or lists."""
        if operator == "+" and type(left) is type(right) and isinstance(left, str | list):
            _charge(len(left) + len(right))
        elif not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise TypeError(f"{operator} wants numbers, got {type(left).__name__} and {type(right).__name__}")
        elif _bits(operator, left, right) > _MAX_BITS:
            raise SecurityError("the number is too large")
        return super().call_binop(context, operator, left, right)


class Bounds(NodeTransformer):
    """Refuses what the language doesn't have, and puts meters where a template can grow."""

    known = frozenset(_NODES.split())

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if type(node).__name__ not in self.known:
            raise TemplateSyntaxError(f"{type(node).__name__.lower()} is not available here", _line(node))
        return super().generic_visit(node, *args, **kwargs)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  (Jinja2's naming)
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=_line(node)), _CONCAT)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not available here", _line(node))
        self.generic_visit(node)
        node.iter = _filter(node.iter, _TURN)
        return node


_TURN = "_turns"
_CONCAT = "_concat"


def metered() -> None:
    """Start a rendering: what it may produce from now on, in this context."""
    _left.set([MAX_OUTPUT, MAX_TURNS])


def charge_output(chunks: Iterable[str]) -> Iterator[str]:
    """The chunks of an output, as long as they are within bounds."""
    for chunk in chunks:
        _charge(len(chunk))
        yield chunk


def as_text(value: Any) -> Any:
    """A value inside a text: null is empty, objects and lists are JSON, booleans as in JSON."""
    if isinstance(value, str | StrictUndefined):
        return value
    if value is None:
        return ""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return orjson.dumps(as_data(value)).decode()


def as_data(value: Any) -> Any:
    """An expression's value as JSON data: iterators and tuples become lists; TypeError for what has no JSON."""
    if isinstance(value, StrictUndefined):
        value._fail_with_undefined_error()
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): as_data(item) for key, item in value.items()}
    if callable(value) or not isinstance(value, Iterable):
        raise TypeError(f"not data: {type(value).__name__}")
    return [as_data(item) for item in value]


def _charge(amount: int, meter: int = 0) -> None:
    left = _left.get()
    left[meter] -= amount
    if left[meter] < 0:
        what = (
            ("produces more than", MAX_OUTPUT, "characters") if meter == 0 else ("loops more than", MAX_TURNS, "times")
        )
        raise SecurityError(" ".join(map(str, what)))


def _turns(iterable: Iterable[Any]) -> Iterator[Any]:
    for item in iterable:
        _charge(1, 1)
        yield item


def _concat(parts: list[Any]) -> str:
    texts = [str(as_text(part)) for part in parts]
    _charge(sum(map(len, texts)))
    return "".join(texts)


def _join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        value = [item.get(attribute) if isinstance(item, Mapping) else None for item in value]
    texts = [str(as_text(part)) for part in value]
    _charge(sum(map(len, texts)) + len(d) * len(texts))
    return d.join(texts)


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    if function is FILTERS["replace"]:
        return _replace

    def bounded(value: Any) -> str:
        text = str(function(as_text(value)))
        _charge(len(text))
        return text

    return bounded


def _replace(value: Any, old: str, new: str) -> str:
    text = str(as_text(value))
    _charge(len(text) + max(0, len(new) - len(old)) * text.count(old))
    return text.replace(old, new)


def _round(value: float, precision: int = 0) -> float:
    return round(value, max(-15, min(15, precision)))


def _sum(values: Iterable[Any], attribute: str | None = None) -> Any:
    items = [item.get(attribute) for item in values] if attribute is not None else list(values)
    if not all(isinstance(item, int | float) for item in items):
        raise TypeError("sum wants numbers")
    return sum(items)


def _tojson(value: Any) -> str:
    text = orjson.dumps(as_data(value)).decode()
    _charge(len(text))
    return text


def _bits(operator: str, left: float, right: float) -> float:
    """An upper bound of the size of a whole result, in bits."""
    if not (isinstance(left, int) and isinstance(right, int)):
        return 0
    if operator == "**":
        return left.bit_length() * abs(right) if left not in (-1, 0, 1) else 1
    return left.bit_length() + right.bit_length()


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=_line(node))


def _line(node: nodes.Node) -> int:
    return getattr(node, "lineno", None) or 1


sandbox = Sandbox()
