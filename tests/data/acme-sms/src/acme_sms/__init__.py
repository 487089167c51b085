"""The action ``sms``: text messages by way of Acme's gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from appliance.plugin import Action, Context, Environment, Params, Reject, Retry


class SmsSettings(BaseModel):
    """``plugins.sms`` in ``appliance.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gateway: str = "https://sms.acme.example/v1/messages"
    sender: str = "Acme"


class Sms(Params):
    """One text to one or several numbers."""

    to: list[Annotated[str, Field(pattern=r"^\+[1-9][0-9]{6,14}$")]]
    text: str = Field(min_length=1, max_length=1600)


@asynccontextmanager
async def open_settings(environment: Environment) -> AsyncIterator[SmsSettings]:
    """Nothing to open here: the resource is just the settings."""
    yield environment.settings


async def send(params: Sms, ctx: Context) -> dict[str, Any]:
    """Send a text message, to each number by a delivery of its own."""
    settings: SmsSettings = ctx.resource

    async def one(number: str) -> str:
        response = await ctx.http.post(
            settings.gateway,
            json={"from": settings.sender, "to": number, "text": params.text},
            # Unique per message: the same for every attempt, so that the gateway drops a second copy.
            headers={
                "Idempotency-Key": f"{ctx.idempotency_key}-{number}",
                "Authorization": f"Bearer {ctx.secrets.get('acme_token', '')}",
            },
        )
        if response.status_code == 429 or response.is_server_error:
            raise Retry(f"the gateway is busy: {response.status_code}", after=response.headers.get("Retry-After"))
        if not response.is_success:
            raise Reject(f"the gateway refused: {response.status_code}")
        return str(response.json()["id"])

    delivered = [await ctx.deliver("sms", number, partial(one, number)) for number in params.to]
    return {"message_ids": [delivery.message_id for delivery in delivered]}


action = Action(
    params=Sms,
    run=send,
    timeout=timedelta(seconds=10),
    settings=SmsSettings,
    resource=open_settings,
    description="Send a text message.",
)
