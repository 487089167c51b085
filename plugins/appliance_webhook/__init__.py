"""The action ``webhook``: an HTTP request, with the idempotency key, and signed if a secret is given."""

from __future__ import annotations

from datetime import timedelta

from appliance.plugin import Action
from appliance_webhook.params import Webhook
from appliance_webhook.request import run

__all__ = ["Webhook", "action", "run"]

# The outbound client has a total time limit of its own (outbound.timeout, or the parameter); this one is behind it.
action = Action(params=Webhook, run=run, timeout=timedelta(minutes=2), description="Send an HTTP request (a webhook).")
