"""The HTTP side: taking events in, the API, health, and the pages."""
