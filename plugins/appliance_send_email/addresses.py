"""Which addresses are taken: one plain address per entry, so that none can smuggle in another or a header.

Quoted local parts, comments, groups, address literals and non-ASCII local parts are refused on purpose (RFC 5321 lets
them exist; forms that carry them are nearly always attacks). A domain outside ASCII is sent in its IDNA form.
"""

from __future__ import annotations

import re
from email.headerregistry import Address

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_LOCAL = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAMED = re.compile(r"(?P<name>[^<>\x00-\x1f\x7f-\x9f\u2028\u2029]{0,200})<(?P<address>[^<>]*)>")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def recipient(text: str) -> str:
    """``text`` as one plain address (``local@domain``) in its ASCII form; ValueError otherwise."""
    local, at, domain = text.strip(" ").rpartition("@")
    if not at or len(local) > 64 or not _LOCAL.fullmatch(local):
        raise ValueError(f"expected one plain address such as ann@example.org, got {text!r:.100}")
    ascii_domain = _ascii(domain)
    if len(ascii_domain) > 253 or not _DOMAIN.fullmatch(ascii_domain):
        raise ValueError(f"expected one plain address such as ann@example.org, got {text!r:.100}")
    return f"{local}@{ascii_domain}"


def sender(text: str) -> Address:
    """A plain address, or ``Name <address>``; ValueError otherwise."""
    named = _NAMED.fullmatch(text.strip(" "))
    if named is None:
        return Address(addr_spec=recipient(text))
    name = named["name"].strip()
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return Address(display_name=name, addr_spec=recipient(named["address"]))


def _ascii(domain: str) -> str:
    if domain.isascii():
        return domain
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        return ""
