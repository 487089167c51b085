"""The action ``publish``: a new event into a stream, for other workflows to match."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from appliance.plugin import Action, Context, Params


class Publish(Params):
    """The new event. Its source is the workflow unless ``source`` says otherwise."""

    type: str = Field(min_length=1, max_length=1024)
    data: Any = None
    subject: str | None = Field(None, max_length=1024)
    source: str | None = Field(None, min_length=1, max_length=1024)
    priority: Literal["high", "normal", "low"] = "normal"
    attributes: dict[str, str | int | float | bool] = Field({})


async def run(params: Publish, ctx: Context) -> dict[str, str]:
    """Publish an event. A chain of events longer than ``engine.max_hops`` is cut."""
    event_id = await ctx.publish(
        type=params.type,
        data=params.data,
        subject=params.subject,
        source=params.source,
        priority=params.priority,
        attributes=params.attributes,
    )
    return {"id": event_id}


action = Action(params=Publish, run=run, description="Publish a new event.")
