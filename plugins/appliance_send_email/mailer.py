"""The action itself, over a mail server's connections or the outbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from appliance.plugin import Context, Environment, Reject, Retry
from appliance_send_email.addresses import sender
from appliance_send_email.connections import Connections
from appliance_send_email.message import Mail, compose
from appliance_send_email.outbox import Outbox
from appliance_send_email.params import SendEmail
from appliance_send_email.settings import SmtpSettings
from appliance_send_email.templates import Rendered, TemplateRefused, Templates


class Mailer:
    """The resource: templates, the default sender, and the way out (``connections`` or ``outbox``)."""

    def __init__(self, environment: Environment) -> None:
        settings: SmtpSettings = environment.settings
        self.templates = Templates(environment.config_dir / "templates")
        self.from_email = settings.from_email
        self.outbox = Outbox(environment.data_dir / "outbox")
        self.connections = Connections(settings, environment.log) if settings.host else None
        if self.connections is None:
            environment.log.warning("no mail server is set (smtp.host): mail is written to %s", self.outbox.folder)

    @classmethod
    @asynccontextmanager
    async def open(cls, environment: Environment) -> AsyncIterator[Mailer]:
        """Connections are opened when a mail needs them, and closed here."""
        mailer = cls(environment)
        try:
            yield mailer
        finally:
            if mailer.connections is not None:
                await mailer.connections.close()


async def run(params: SendEmail, ctx: Context) -> dict[str, Any]:
    """Send an e-mail, to each recipient by a delivery of its own.

    The step succeeds when every recipient was served. It is tried again when any may be (for those alone); when the
    others were refused for good, it fails.
    """
    mailer: Mailer = ctx.resource
    mail = compose(params, _text(params, mailer, ctx), sender(params.from_ or mailer.from_email), ctx.idempotency_key)
    written: dict[str, str] = {}
    outcomes = await asyncio.gather(
        *(_deliver(mailer, mail, recipient, ctx, written) for recipient in params.recipients()), return_exceptions=True
    )
    _judge(outcomes)
    output: dict[str, Any] = {"message_ids": [mail.message_id]}
    return {**output, "outbox": sorted(written.values())} if mailer.connections is None else output


def _text(params: SendEmail, mailer: Mailer, ctx: Context) -> Rendered:
    if params.template is None:
        return Rendered(params.subject, params.body, params.html)
    run_view = {"id": ctx.run.id, "workflow": ctx.run.workflow, "revision": ctx.run.revision}
    try:
        text = mailer.templates.render(
            params.template, {"data": params.data, "event": ctx.event.view(), "run": run_view}
        )
    except TemplateRefused as error:
        raise Reject(f"template: {error}") from None
    return Rendered(params.subject if params.subject is not None else text.subject, text.body, text.html)


async def _deliver(mailer: Mailer, mail: Mail, recipient: str, ctx: Context, written: dict[str, str]) -> None:
    async def send() -> str | None:
        if mailer.connections is not None:
            await mailer.connections.send(mail, recipient)
        else:
            try:
                path = mailer.outbox.put(mail, recipient, ctx.event.time)
            except OSError as error:
                raise Retry(f"the mail can't be written: {error}") from error
            written[recipient] = str(path)
        return mail.message_id

    await ctx.deliver("email", recipient, send)


def _judge(outcomes: list[BaseException | None]) -> None:
    """Raise what the deliveries that failed amount to."""
    errors = [outcome for outcome in outcomes if outcome is not None]
    if not errors:
        return
    if unexpected := [error for error in errors if not isinstance(error, Retry | Reject)]:
        raise unexpected[0]
    retries = [error for error in errors if isinstance(error, Retry)]
    chosen = retries or errors
    reasons = "; ".join(dict.fromkeys(str(error) for error in chosen))
    text = reasons if len(outcomes) == 1 else f"{len(chosen)} of {len(outcomes)} recipients: {reasons}"
    raise Retry(text) if retries else Reject(text)
