"""An appliance for event-driven workflows on Redis Streams."""
