"""An action of a distribution of its own, which a test leaves out of a replica's path as if it were uninstalled."""

from __future__ import annotations

from appliance.plugin import Action, Context, Params


class Ghost(Params):
    """Nothing to say."""


async def run(params: Ghost, ctx: Context) -> dict[str, int]:
    """Appear."""
    return {"attempt": ctx.attempt}


action = Action(params=Ghost, run=run, description="Appear.")
