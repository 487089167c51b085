"""The action ``send_email``: one mail, delivered to each of its recipients; without a mail server, into files."""

from __future__ import annotations

from datetime import timedelta

from appliance.plugin import Action
from appliance_send_email.mailer import Mailer, run
from appliance_send_email.params import SendEmail
from appliance_send_email.settings import SmtpSettings

__all__ = ["Mailer", "SendEmail", "SmtpSettings", "action", "run"]

action = Action(
    params=SendEmail,
    run=run,
    # Behind the limit of one mail (smtp.timeout, per recipient), for many recipients.
    timeout=timedelta(minutes=2),
    settings=SmtpSettings,
    resource=Mailer.open,
    description="Send an e-mail.",
)
