"""The action ``log``: a line in the process's log."""

from __future__ import annotations

import logging
from typing import Any, Literal

from pydantic import Field

from appliance.plugin import Action, Context, Params

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
# What is logged often comes from a form: a line break must not forge a second line, nor an escape colour a terminal.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x09} | {
    0x0A: "\\n",
    0x0D: "\\r",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


class Log(Params):
    """``message`` is written at ``level``; ``fields`` stand beside it for whoever searches the log."""

    message: str
    level: Literal["debug", "info", "warning", "error"] = "info"
    fields: dict[str, Any] = Field({})


async def run(params: Log, ctx: Context) -> dict[str, Any]:
    """Write a line to the log."""
    line = params.message.translate(_VISIBLE)
    extra = {"fields": params.fields} if params.fields else None
    ctx.log.log(_LEVELS[params.level], "%s", line, extra=extra)
    return {"message": line, "level": params.level}


action = Action(params=Log, run=run, description="Write a line to the log.")
