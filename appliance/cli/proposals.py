"""Definitions in files as changes of what is in force: what ``appliance apply`` and ``appliance diff`` share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli.client import API, Answer, Client, failure_of
from appliance.cli.exits import Exit, Failure
from appliance.cli.tables import cell
from appliance.errors import DefinitionError, Problem

if TYPE_CHECKING:
    from appliance.workflows.loader import Document

REFUSALS = (409, 412, 413, 422, 428)
"""Answers that are about the definition; any other failure ends the command."""

_FOLLOW = "parked runs go on in the new definition once they are woken, where they can (revisions: follow)"
_PIN = "parked runs stay on their revisions; `appliance runs migrate` moves them"


@dataclass(slots=True)
class Proposal:
    """A definition in a file, and what the process says that it would change (``plan``), or why not (``problems``).

    ``change`` is create, change, enable, disable, none or refused.
    """

    document: Document
    key: str
    data: Any
    plan: dict[str, Any] = field(default_factory=dict)
    change: str = "refused"
    done: bool = False
    problems: list[Problem] = field(default_factory=list)
    code: Exit = Exit.OK
    calls: frozenset[str] = frozenset()
    """The workflows that it calls and that weren't there when it was compared."""

    @property
    def file(self) -> str:
        return str(self.document.file)

    @property
    def name(self) -> str:
        """The workflow's name, once it is known; until then as it may stand in the file."""
        return str(self.plan.get("name") or (self.data.get("name") if isinstance(self.data, dict) else None) or "?")

    @property
    def changes(self) -> bool:
        """Whether it would change anything."""
        return self.change not in ("none", "refused")

    def refuse(self, answer: Answer) -> None:
        """Take a refusal as the problems of the file that it is about."""
        failure = failure_of(answer)
        self.change = "refused"
        self.code = Exit.CONFIGURATION if answer.status == 422 else failure.code
        problems = answer.body.get("problems") if isinstance(answer.body, dict) else None
        self.problems = [self._placed(problem) for problem in problems or ()] or [Problem(str(failure), file=self.file)]

    def _placed(self, problem: dict[str, Any]) -> Problem:
        """A problem that the process found, at the place that its key has in the file."""
        own = str(problem.get("key") or "")
        key = near = f"{self.key}.{own}".strip(".") if not own.startswith("[") else f"{self.key}{own}"
        while near and near not in self.document.lines:
            near = near[: max(near.rfind("."), near.rfind("["), 0)]
        line, column = self.document.lines.get(near, (None, None))
        return Problem(str(problem.get("message")), key, self.file, line, column, problem.get("expected"))

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        names = ("revision", "becomes", "enabled", "diff", "warnings", "missing", "follows", "touches", "more")
        told = {name: self.plan[name] for name in names if name in self.plan}
        errors = [str(problem) for problem in self.problems]
        return {
            "name": self.name,
            "file": self.file,
            "change": self.change,
            "done": self.done,
            **told,
            "errors": errors,
        }


def proposed(client: Client, paths: Sequence[Path]) -> list[Proposal]:
    """Every definition in files and folders, with what it would change; nothing is changed.

    Raises DefinitionError for files that can't be read, Failure if there is nothing in one of the folders (it may be
    the wrong one, and to prune what it doesn't have would be no help), or the process can't answer.
    """
    proposals = list(_read(paths))
    owners: dict[str, Proposal] = {}
    for proposal in proposals:
        answer = client.ask("POST", f"{API}/workflows?dry_run=true", proposal.data)
        if answer.status in REFUSALS:
            proposal.refuse(answer)
            continue
        if answer.status != 200:
            raise failure_of(answer)
        proposal.plan = answer.body
        proposal.change = answer.body["change"]
        proposal.calls = frozenset(answer.body["missing"])
        owner = owners.setdefault(proposal.name, proposal)
        if owner is not proposal:
            _refuse_second(proposal, owner)
    for proposal in proposals:
        proposal.plan["missing"] = sorted(proposal.calls - owners.keys())
    return proposals


def complaints(proposals: Iterable[Proposal]) -> Iterator[str]:
    """Why definitions are refused, one problem a line, each with its file."""
    for proposal in proposals:
        yield from (cell(str(problem)) for problem in proposal.problems)


def remarks(plan: dict[str, Any]) -> Iterator[str]:
    """What to know of a change before it is made: what is odd, and the parked runs that it touches."""
    name = cell(plan["name"])
    for warning in plan.get("warnings") or ():
        yield f"{name}: warning: {cell(warning)}"
    for called in plan.get("missing") or ():
        yield f"{name}: warning: it calls {cell(repr(called))}, which is not there"
    yield from touched(name, plan)


def touched(name: str, plan: dict[str, Any]) -> Iterator[str]:
    """The parked runs that a change touches, a line for those of one revision that stand alike."""
    if plan.get("touches") and plan.get("change") in ("change", "rollback"):
        yield f"{name}: {_FOLLOW if plan.get('follows') else _PIN}"
    for group in plan.get("touches") or ():
        runs = f"{group['runs']} run" + ("" if group["runs"] == 1 else "s")
        at = f" at {', '.join(group['at'])}" if group["at"] else ""
        gaps = f"; can't go on in the new definition: {'; '.join(group['gaps'])}" if group["gaps"] else ""
        yield cell(
            f"{name}: {runs} of revision {group['revision']}, {group['status']}{at}, as {group['example']}{gaps}"
        )
    if plan.get("more"):
        yield f"{name}: and further runs"


def _refuse_second(proposal: Proposal, owner: Proposal) -> None:
    key = f"{proposal.key}.name".strip(".")
    line, column = proposal.document.lines.get(key, (None, None))
    message = f"{proposal.name!r} is already defined in {owner.file}"
    proposal.problems = [Problem(message, key, proposal.file, line, column, "a name of its own")]
    proposal.change, proposal.code = "refused", Exit.CONFIGURATION


def _read(paths: Sequence[Path]) -> Iterator[Proposal]:
    from appliance.workflows.dialects import parts_of
    from appliance.workflows.loader import definition_files, read_document

    files: list[Path] = []
    for path in paths:
        found = list(definition_files(path)) if path.is_dir() else [path]
        if not found:
            raise Failure(f"there is no definition in {path}", Exit.CONFIGURATION)
        files += found
    documents: list[Document] = []
    problems: list[Problem] = []
    for file in dict.fromkeys(files):
        try:
            documents.append(read_document(file))
        except DefinitionError as error:
            problems += error.problems
    if problems:
        raise DefinitionError(*problems)
    for document in documents:
        for key, part in parts_of(document.data):
            yield Proposal(document, key, part)
