"""What somebody who changes a workflow takes to be in force, and the refusals when it isn't, or when a file owns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from appliance.errors import Conflict

ANY = "*"
"""As an ETag: whatever is in force, as long as there is something."""


class Standing(Protocol):
    """What is in force for a workflow, as far as it matters here."""

    @property
    def name(self) -> str: ...
    @property
    def etag(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def file(self) -> str | None: ...


class Outdated(Conflict):
    """Something else is in force than what the change was made for: ``etag`` and ``revision``, None if nothing is."""

    def __init__(self, message: str, standing: Standing | None) -> None:
        self.etag = None if standing is None else standing.etag
        self.revision = None if standing is None else standing.number
        super().__init__(message)


class Unseen(Outdated):
    """The change does not say for what it was made."""


class OwnedByFile(Conflict):
    """The workflow belongs to a file (``file``, relative to the configuration folder)."""

    def __init__(self, name: str, file: str) -> None:
        self.file = f"workflows/{file}"
        super().__init__(f"the workflow {name!r} is defined by the file {self.file}: change it there")


@dataclass(frozen=True, slots=True)
class Precondition:
    """``match``: the ETags (without quotes) one of which is taken to be in force, or ANY; None: nothing was said.

    ``absent``: there is no such workflow yet.
    """

    match: frozenset[str] | None = None
    absent: bool = False

    def check(self, standing: Standing | None, *, changes: bool, required: bool) -> None:
        """Raise Outdated unless it holds, and Unseen if nothing was said where it is ``required``.

        What ``changes`` nothing passes with any ETag, so that a change whose answer was lost can be sent again.
        """
        if standing is None:
            if self.match is not None:
                raise Outdated("there is no such workflow (any more): leave If-Match out to create it", None)
            return
        now = f'revision {standing.number} of {standing.name!r} is in force, its ETag is "{standing.etag}"'
        if self.absent:
            raise Outdated(f"there is a workflow of this name: {now}", standing)
        if not changes:
            return
        if self.match is None:
            if required:
                how = f'look at it, and send If-Match: "{standing.etag}" (or If-Match: * to change whatever is there)'
                raise Unseen(f"this would change what is in force: {now}; {how}", standing)
        elif ANY not in self.match and standing.etag not in self.match:
            why = "somebody changed it since" if self.match else "a weak ETag (W/…) matches nothing"
            raise Outdated(f"{why}: {now}", standing)


NOTHING_SAID = Precondition()


def refuse_file(standing: Standing | None) -> None:
    """Raise OwnedByFile if a file owns the workflow."""
    if standing is not None and standing.file is not None:
        raise OwnedByFile(standing.name, standing.file)
