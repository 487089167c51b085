"""What stands between a decoded event and the stream: the size limit, the rate limit, the producer."""

from __future__ import annotations

from appliance.events import Event
from appliance.http.meters import count_accepted
from appliance.http.problems import too_large
from appliance.http.rate import TokenBucket
from appliance.http.services import AcceptedEvent, Submitter
from appliance.settings import IngestSettings


class Admission:
    """Takes events in. Everything raises before anything is in the stream, or the answer is that it is there."""

    def __init__(self, producer: Submitter, settings: IngestSettings) -> None:
        self._producer = producer
        self._max_event_bytes = settings.max_event_bytes
        self._bucket = TokenBucket(settings.rate_limit)

    def reserve(self, count: int = 1) -> None:
        """Take ``count`` events from the rate limit; raises a 429 problem."""
        self._bucket.take(count)

    def check_size(self, event: Event) -> None:
        """Raise a 413 problem for an event that the producer would refuse: before any other of its batch is in."""
        if sum(map(len, event.to_entry().values())) > self._max_event_bytes:
            raise too_large(f"The event is larger than {self._max_event_bytes} bytes.")

    async def submit(self, event: Event, priority: str = "normal") -> AcceptedEvent:
        """Put the event into the stream; raises Unavailable, or Malformed when it is too large."""
        accepted = await self._producer.submit(event, priority)
        count_accepted(accepted, priority)
        return accepted
