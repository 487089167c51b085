"""Composing the mail: bytes that every server takes (7 bit, CRLF), with the same Message-ID for every attempt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from appliance_send_email.params import SendEmail
from appliance_send_email.templates import Rendered

# Quoted-printable or base64 for anything beyond ASCII: not every server announces 8BITMIME.
_POLICY = SMTP.clone(cte_type="7bit")


@dataclass(frozen=True, slots=True)
class Mail:
    """A composed mail and its envelope's sender; ``Bcc`` isn't in it."""

    message_id: str
    sender: str
    content: bytes


def compose(params: SendEmail, text: Rendered, sender: Address, idempotency_key: str) -> Mail:
    """The mail that ``params`` describe, with ``text`` as its content."""
    message = EmailMessage(policy=_POLICY)
    message_id = f"<{hashlib.blake2b(idempotency_key.encode(), digest_size=16).hexdigest()}@{sender.domain}>"
    message["From"] = sender
    message["To"] = [Address(addr_spec=address) for address in params.to]
    for name, addresses in (("Cc", params.cc), ("Reply-To", params.reply_to)):
        if addresses:
            message[name] = [Address(addr_spec=address) for address in addresses]
    message["Subject"] = text.subject or ""
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = message_id
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers, no loops
    if text.body is not None:
        message.set_content(text.body)
        if text.html is not None:
            message.add_alternative(text.html, subtype="html")
    else:
        message.set_content(text.html or "", subtype="html")
    return Mail(message_id, sender.addr_spec, message.as_bytes())
