"""What one attempt of an action does to the outside by ``ctx.deliver`` and ``ctx.publish``, and the record of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from appliance.engine import storable
from appliance.errors import Malformed, Unavailable
from appliance.events import PRIORITIES, Event, dumps, event_key, from_cloudevent, loads
from appliance.identifiers import key_uuid, uuid7
from appliance.plugin import Delivered, Reject, Retry, RunInfo

Publisher = Callable[[Event, str], Awaitable[object]]
"""Puts an event into the stream of a priority. Raises Unavailable; an event that is there already is no error."""

DeliveredBefore = Mapping[tuple[str, str], str | None]
"""Deliveries that earlier attempts of the step made, as recorded: (channel, recipient) -> message id."""


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """One message to one recipient, as this attempt left it. ``failed`` may be tried again, ``rejected`` may not.

    Its texts are such that they can be stored; a very long recipient is shortened, the same way every time.
    """

    channel: str
    recipient: str
    status: Literal["sent", "failed", "rejected"]
    message_id: str | None = None
    error: str | None = None


class Effects:
    """The deliveries and publications of one attempt. After :meth:`close` it refuses: nobody would record them."""

    __slots__ = (
        "_before",
        "_closed",
        "_event",
        "_hide",
        "_key",
        "_max_hops",
        "_published",
        "_publisher",
        "_records",
        "_run",
    )

    def __init__(
        self,
        event: Event,
        run: RunInfo,
        key: str,
        before: DeliveredBefore,
        publisher: Publisher,
        max_hops: int,
        hide: Callable[[str], str] = str,
    ) -> None:
        """``hide`` masks secrets in what is recorded: an address may hold one."""
        self._event = event
        self._run = run
        self._key = key
        self._before = before
        self._publisher = publisher
        self._max_hops = max_hops
        self._hide = hide
        self._records: dict[tuple[str, str], DeliveryRecord] | None = None
        self._published = 0
        self._closed = False

    @property
    def records(self) -> tuple[DeliveryRecord, ...]:
        """What was delivered so far, in the order of the calls."""
        return tuple(self._records.values()) if self._records else ()

    def close(self) -> None:
        """The attempt is over: a coroutine that outlives it can't deliver or publish any more."""
        self._closed = True

    async def deliver(self, channel: str, recipient: str, send: Callable[[], Awaitable[str | None]], /) -> Delivered:
        """See :class:`appliance.plugin.Deliver`."""
        self._still_open()
        hide = self._hide
        key = (storable.name(channel), storable.name(hide(str(recipient))))
        if key in self._before:
            return Delivered(recipient, self._before[key], repeated=True)
        if self._records is None:
            self._records = {}
        known = self._records.get(key)
        if known is not None and known.status == "sent":
            return Delivered(recipient, known.message_id, repeated=True)
        # Until send() returns, what a timeout leaves behind is a delivery of unknown outcome.
        self._records[key] = DeliveryRecord(*key, "failed", error="interrupted: it may have been sent")
        try:
            given = await send()
        except Reject as error:
            self._records[key] = DeliveryRecord(*key, "rejected", error=hide(storable.reason(error)))
            raise
        except Retry as error:
            self._records[key] = DeliveryRecord(*key, "failed", error=hide(storable.reason(error)))
            raise
        except Exception as error:
            self._records[key] = DeliveryRecord(*key, "failed", error=hide(storable.error(error)))
            raise
        message_id = None if given is None else storable.name(hide(str(given)))
        self._records[key] = DeliveryRecord(*key, "sent", message_id)
        return Delivered(recipient, message_id)

    async def publish(
        self,
        *,
        type: str,
        data: Any = None,
        subject: str | None = None,
        source: str | None = None,
        priority: str = "normal",
        attributes: Mapping[str, str | int | float | bool] | None = None,
    ) -> str:
        """See :class:`appliance.plugin.Publish`.

        The chain is followed by the attributes hops, correlationid and causationid (the run's id).
        """
        self._still_open()
        if priority not in PRIORITIES:
            raise Reject(f"priority: expected one of {', '.join(PRIORITIES)}, got {priority!r:.80}")
        hops = hops_of(self._event) + 1
        if hops > self._max_hops:
            raise Reject(f"{type}: the chain of events that led here is longer than {self._max_hops} (engine.max_hops)")
        self._published += 1
        event_id = key_uuid("publish", self._key, str(self._published))
        event = self._make(
            {
                **(attributes or {}),
                "hops": hops,
                "correlationid": self._event.attributes.get("correlationid", self._event.id),
                "causationid": self._run.id,
                "type": type,
                "id": event_id,
                "source": source if source is not None else f"workflow:{self._run.workflow}",
                "subject": subject,
                "data": data,
            },
            taken=set(attributes or ()),
        )
        try:
            await self._publisher(event, priority)
        except Unavailable as error:
            raise Retry(f"{type} could not be published: {error}", after=error.retry_after_s) from error
        return event_id

    def _make(self, document: dict[str, Any], *, taken: set[str]) -> Event:
        if reserved := taken & _RESERVED:
            raise Reject(f"attributes: {', '.join(sorted(reserved))} can't be set")
        try:
            # Through JSON: the event is what a reader of the stream will see, and shares nothing with the plugin.
            event = from_cloudevent(
                loads(dumps(document)), uid=uuid7(), key=event_key(document["source"], document["id"])
            )
        except Malformed as error:
            raise Reject(f"not an event that can be published: {error}") from None
        return event

    def _still_open(self) -> None:
        if self._closed:
            raise Reject("this attempt is over: its deliveries and events would not be recorded")


_RESERVED = frozenset(
    {"hops", "correlationid", "causationid", "id", "source", "type", "subject", "time", "data", "specversion"}
)


def hops_of(event: Event) -> int:
    """How many events led to this one, each by a run that the one before had started."""
    hops = event.attributes.get("hops", 0)
    return max(0, hops) if isinstance(hops, int) else 0
