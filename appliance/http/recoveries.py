"""``POST /api/v1/recover``: look at once, and at everything, for what was lost with Redis's data."""

from __future__ import annotations

from starlette.requests import Request

from appliance.http.operations import Operation
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services


class Recoveries:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._recover = services.recover

    def operations(self) -> tuple[Operation, ...]:
        """Its one operation."""
        return (
            Operation(
                method="POST",
                path="/api/v1/recover",
                handler=self.recover,
                summary="Put back to work what was lost with Redis's data",
                answer="Recovery",
            ),
        )

    async def recover(self, request: Request) -> Reply:
        """How much of each kind was put back. Asking again is safe: what is not lost is left alone."""
        return json_reply(dict(await self._recover()))
