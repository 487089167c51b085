"""The parameters of ``send_email``."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from appliance.plugin import Params
from appliance_send_email.addresses import CONTROL, recipient, sender

MAX_RECIPIENTS = 100


def _entries(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _one_line(text: str) -> str:
    if CONTROL.search(text):
        raise ValueError("a line break or control character can't stand here")
    return text


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("NUL can't stand in a mail")
    return text


def _sender(text: str) -> str:
    sender(text)
    return text


Addresses = Annotated[
    tuple[Annotated[str, AfterValidator(recipient)], ...],
    BeforeValidator(_entries, json_schema_input_type=str | list[str]),
]
Text = Annotated[str, AfterValidator(_no_nul), Field(max_length=1_000_000)]


class SendEmail(Params):
    """One mail. Every entry of ``to``, ``cc``, ``bcc`` and ``reply_to`` is one plain address.

    The text comes from ``body`` and ``html``, or from ``template``: the files ``<template>.txt`` and
    ``<template>.html`` in ``<config-dir>/templates``, rendered with ``data`` and the event.
    """

    model_config = ConfigDict(populate_by_name=True)

    to: Addresses
    cc: Addresses = ()
    bcc: Addresses = ()
    reply_to: Addresses = ()
    from_: Annotated[str, AfterValidator(_sender)] | None = Field(None, alias="from")
    subject: Annotated[str, AfterValidator(_one_line), Field(max_length=900)] | None = None
    body: Text | None = None
    html: Text | None = None
    template: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*$")] | None = None
    data: dict[str, Any] = Field({})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.to:
            raise ValueError("to: nobody to send to")
        if len(self.recipients()) > MAX_RECIPIENTS:
            raise ValueError(f"more than {MAX_RECIPIENTS} recipients")
        if self.template is None and self.body is None and self.html is None:
            raise ValueError("nothing to send: give body, html or template")
        if self.template is not None and (self.body is not None or self.html is not None):
            raise ValueError("template excludes body and html")
        return self

    def recipients(self) -> tuple[str, ...]:
        """Everybody who gets the mail, each once, in order."""
        return tuple(dict.fromkeys((*self.to, *self.cc, *self.bcc)))
