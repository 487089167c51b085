"""An action that does everything an action must not do; found through its own distribution's entry point."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from datetime import timedelta
from typing import Any, Literal

from appliance.plugin import Action, Context, Params


class Chaos(Params):
    """What to do."""

    how: Literal[
        "raise",
        "system-exit",
        "keyboard-interrupt",
        "cancelled",
        "hang",
        "swallow",
        "block",
        "abort",
        "rubbish",
        "coin",
        "fine",
    ]
    seconds: float = 3600.0


async def run(params: Chaos, ctx: Context) -> Any:
    """Misbehave."""
    if params.how == "block":
        time.sleep(params.seconds)  # noqa: ASYNC251 - that is the misbehaviour
    elif params.how == "abort":
        os.abort()
    elif params.how == "hang":
        await asyncio.sleep(params.seconds)
    elif params.how == "swallow":
        await _swallow(params.seconds)
    elif params.how == "rubbish":
        return object()
    elif params.how == "coin":
        if random.random() < 0.5:
            raise ValueError("tails")
    elif params.how != "fine":
        raise {
            "raise": ValueError("out of order"),
            "system-exit": SystemExit(3),
            "keyboard-interrupt": KeyboardInterrupt(),
            "cancelled": asyncio.CancelledError(),
        }[params.how]
    return {"how": params.how, "attempt": ctx.attempt}


async def _swallow(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(until - time.monotonic())


action = Action(params=Chaos, run=run, timeout=timedelta(seconds=30), description="Misbehave.")
