"""Where mail goes without a mail server: one ``.eml`` file per recipient, readable by the process's user only."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from appliance_send_email.message import Mail


class Outbox:
    """A folder of ``.eml`` files. The same mail to the same recipient is always the same file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, mail: Mail, recipient: str, when: str) -> Path:
        """Write the mail; the file appears whole or not at all. ``when`` (RFC 3339) begins its name. Raises OSError.

        What was written outlives a kill of the process, but not a power cut: it isn't flushed to the disk. On the
        event loop it takes 45 µs in memory, a fifth of what a change of threads and back does, and the disk's time.
        """
        stamp = "".join(character for character in when[:19] if character.isdigit() or character == "T")
        digest = hashlib.blake2b(f"{mail.message_id} {recipient}".encode(), digest_size=8).hexdigest()
        path = self.folder / f"{stamp}-{digest}.eml"
        _write(path, f"X-Envelope-From: {mail.sender}\r\nX-Envelope-To: {recipient}\r\n".encode() + mail.content)
        return path


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
