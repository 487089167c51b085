"""An action that tells a sink who is at work: run, workflow, key, number, attempt and process."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from appliance.plugin import Action, Context, Params, Reject, Retry


class Visit(Params):
    """Where to, and for what."""

    url: str
    key: str = ""
    n: int = 0


async def run(params: Visit, ctx: Context) -> Any:
    """Call the sink, which answers when the work is done: 503 asks for another attempt, 422 for none."""
    about = {"run": ctx.run.id, "workflow": ctx.run.workflow, "step": ctx.step, "key": params.key, "n": params.n}
    answer = await ctx.http.post(
        params.url,
        json={**about, "event": ctx.event.uid, "attempt": ctx.attempt, "pid": os.getpid()},
        headers={"Idempotency-Key": ctx.idempotency_key},
    )
    if answer.status_code == 503:
        raise Retry("not now")
    if answer.status_code == 422:
        raise Reject("never")
    answer.raise_for_status()
    return {"n": params.n}


action = Action(params=Visit, run=run, timeout=timedelta(seconds=30), description="Visit a sink.")
