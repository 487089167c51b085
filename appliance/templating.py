"""Templates: parameters with ``{{ expressions }}``, compiled when a revision is loaded.

A text that is exactly one ``{{ expression }}`` renders to the expression's value with its type; any other text with
braces renders to text. Everything else is taken literally and costs nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Template as Jinja
from jinja2 import TemplateError as JinjaError
from jinja2 import TemplateSyntaxError, meta, nodes

from appliance import sandbox
from appliance.errors import ApplianceError, DefinitionError, Problem

NAMES = ("event", "steps", "run", "input", "error", "secrets")
"""What an expression can see."""
MAX_SOURCE = 65_536
"""Longest text with expressions, in characters."""
MAX_DEPTH = 64
"""Deepest nesting of a value with expressions in it."""
_COMPILE_ERRORS = (TemplateSyntaxError, RecursionError, SyntaxError, MemoryError, ValueError, OverflowError)
_RENDER_ERRORS = (JinjaError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)

Renderer = Callable[[Mapping[str, Any]], Any]


class TemplateError(ApplianceError):
    """A template can't be rendered with the data at hand; ``key`` is the parameter (``with.to``)."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(f"{key}: {message}")


class Template:
    """A compiled value: text, number, list or mapping, with expressions anywhere in its texts."""

    __slots__ = ("_render", "_value", "is_literal", "names")

    is_literal: bool
    """Whether there is nothing to render."""
    names: frozenset[str]
    """Ids of the steps that expressions name (``steps.<id>``)."""

    @property
    def written(self) -> Any:
        """The value as it was written, with its expressions. Don't change what you get."""
        return self._value

    def __init__(self, value: Any, render: Renderer | None, names: frozenset[str]) -> None:
        self._value = value
        self._render = render
        self.is_literal = render is None
        self.names = names

    def render(self, context: Mapping[str, Any]) -> Any:
        """The value with every expression evaluated; raises TemplateError. The result may share parts with the context.

        A value that is literal is returned itself, not a copy: don't change what you get.
        """
        return self._value if self._render is None else self._render(context)


def compile_template(value: Any, *, key: str, allowed: tuple[str, ...] = NAMES) -> Template:
    """Compile ``value`` (JSON data); raises DefinitionError with a problem for each text that is wrong.

    ``key`` is the dotted path of the value, for messages. Expressions may use the names in ``allowed``.
    """
    problems: list[Problem] = []
    names: set[str] = set()
    render = _compile(value, key, allowed, names, problems)
    if problems:
        raise DefinitionError(*problems)
    return Template(value, render, frozenset(names))


def has_expression(value: Any) -> bool:
    """Whether a text is a template (rather than itself)."""
    return isinstance(value, str) and ("{{" in value or "{%" in value or "{#" in value)


def _compile(
    value: Any, key: str, allowed: tuple[str, ...], names: set[str], problems: list[Problem], depth: int = 0
) -> Renderer | None:
    """A function that renders ``value``, or None when it is literal."""
    if depth > MAX_DEPTH:
        problems.append(Problem(f"nested deeper than {MAX_DEPTH} levels", key))
        return None
    if isinstance(value, dict):
        keyed = {k: _compile(v, f"{key}.{k}", allowed, names, problems, depth + 1) for k, v in value.items()}
        return _object(value, keyed)
    if isinstance(value, list):
        items = [_compile(v, f"{key}[{i}]", allowed, names, problems, depth + 1) for i, v in enumerate(value)]
        return _list(value, items)
    return _text(value, key, allowed, names, problems) if has_expression(value) else None


def _object(value: dict[str, Any], parts: dict[str, Renderer | None]) -> Renderer | None:
    dynamic = [(key, render) for key, render in parts.items() if render is not None]
    if not dynamic:
        return None
    return lambda context: {**value, **{key: render(context) for key, render in dynamic}}


def _list(value: list[Any], parts: list[Renderer | None]) -> Renderer | None:
    if not any(parts):
        return None
    pairs = list(zip(value, parts, strict=True))
    return lambda context: [item if render is None else render(context) for item, render in pairs]


def _text(source: str, key: str, allowed: tuple[str, ...], names: set[str], problems: list[Problem]) -> Renderer | None:
    try:
        compiled = _compiled(source)
    except _COMPILE_ERRORS as error:
        message = (error.message if isinstance(error, TemplateSyntaxError) else None) or "too complicated"
        problems.append(Problem(f"not a template: {message}", key, expected="{{ expression }}"))
        return None
    for name in sorted(compiled.roots.difference(allowed)):
        near = difflib.get_close_matches(name, allowed, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        problems.append(Problem(f"unknown name {name!r}{hint}", key, expected="one of " + ", ".join(allowed)))
    names |= compiled.steps

    def render(context: Mapping[str, Any]) -> Any:
        try:
            return compiled.render(context)
        except _RENDER_ERRORS as error:
            raise TemplateError(key, str(error) or type(error).__name__) from None

    return render


class _Compiled:
    """One text, compiled. Shared by all places where the same text stands."""

    __slots__ = ("_is_value", "_jinja", "roots", "steps")

    def __init__(self, source: str) -> None:
        tree = sandbox.sandbox.parse(source)
        self.roots = frozenset(meta.find_undeclared_variables(tree))
        self.steps = frozenset(_steps_named(tree))
        tree = sandbox.Bounds().visit(tree)
        expression = _sole_expression(tree)
        self._is_value = expression is not None
        if expression is not None:
            tree = nodes.Template([nodes.Assign(nodes.Name("value", "store"), expression, lineno=1)], lineno=1)
        tree.set_environment(sandbox.sandbox)
        self._jinja: Jinja = sandbox.sandbox.from_string(tree)

    def render(self, variables: Mapping[str, Any]) -> Any:
        sandbox.metered()
        # shared: the variables are taken as they are, without globals to merge, hence without a copy.
        context = self._jinja.new_context(variables, shared=True)  # type: ignore[arg-type]
        chunks = self._jinja.root_render_func(context)
        if not self._is_value:
            return "".join(sandbox.charge_output(chunks))
        for _ in chunks:
            pass
        return sandbox.as_data(context.vars["value"])


@lru_cache(maxsize=8192)
def _compiled(source: str) -> _Compiled:
    if len(source) > MAX_SOURCE:
        raise TemplateSyntaxError(f"longer than {MAX_SOURCE} characters", 1)
    return _Compiled(source)


def _sole_expression(tree: nodes.Template) -> nodes.Expr | None:
    if len(tree.body) == 1 and isinstance(output := tree.body[0], nodes.Output) and len(output.nodes) == 1:
        only = output.nodes[0]
        return None if isinstance(only, nodes.TemplateData) else only
    return None


def _steps_named(tree: nodes.Template) -> Iterator[str]:
    for attribute in tree.find_all(nodes.Getattr):
        if _is_steps(attribute.node):
            yield attribute.attr
    for item in tree.find_all(nodes.Getitem):
        if _is_steps(item.node) and isinstance(item.arg, nodes.Const):
            yield str(item.arg.value)


def _is_steps(node: nodes.Expr) -> bool:
    return isinstance(node, nodes.Name) and node.name == "steps"
