"""Where a form may send the browser next: paths on this server, and hosts that the operator listed."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from appliance.http.problems import HttpProblem

_MAX_LENGTH = 2048
"""Characters; longer URLs don't work everywhere anyhow."""

# Browsers drop tabs and newlines and read a backslash as a slash, so "/\t/evil" and "/\evil" lead elsewhere. Only
# printable ASCII: what else a URL holds is percent-encoded, and a Location header could not carry it.
_SAFE = re.compile(r"[!-\[\]-~]+")


def allowed_redirect(target: str, hosts: tuple[str, ...]) -> str:
    """``target`` itself if a form may redirect to it; raises a 422 problem otherwise.

    Allowed are ``/path`` (not ``//host``) and ``http(s)://`` URLs whose host, or ``host:port``, is one of ``hosts``.
    """
    if len(target) <= _MAX_LENGTH and _SAFE.fullmatch(target) and (_is_local(target) or _is_listed(target, hosts)):
        return target
    raise HttpProblem("redirect", "_redirect: neither a path on this server nor a host that is allowed.")


def _is_local(target: str) -> bool:
    return target.startswith("/") and not target.startswith("//")


def _is_listed(target: str, hosts: tuple[str, ...]) -> bool:
    try:
        url = urlsplit(target)
        port = url.port
    except ValueError:
        return False
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
        return False
    listed = {host.lower() for host in hosts}
    default = 443 if url.scheme == "https" else 80
    names = {url.netloc.lower()} if port is not None else {url.hostname, f"{url.hostname}:{default}"}
    return not names.isdisjoint(listed)
