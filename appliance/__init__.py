"""An appliance for event-driven workflows on Redis Streams."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("appliance")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0"
