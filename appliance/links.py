"""Signed links: whoever has one may do the one thing that it is for, without the API key.

The signature is HMAC-SHA256 over the task's id, with a key derived from the setting ``link_key``. It says nothing of
who opens the link, and ends with the task: what is closed can't be answered again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

_PURPOSE = b"appliance: task links"
"""Each kind of link has a key of its own, so that a signature of one is none of another."""


class Links:
    """Makes and checks links. ``base`` is the URL under which people reach this process, without a slash at its end."""

    def __init__(self, key: str, base: str) -> None:
        if not key:
            raise ValueError("a key of links can't be empty")
        self.base = base.rstrip("/")
        self._key = hmac.digest(key.encode(), _PURPOSE, hashlib.sha256)

    def task(self, task_id: str) -> str:
        """The address of the page that shows a task and takes its answer."""
        return f"{self.base}/tasks/{task_id}?sig={self.signature(task_id)}"

    def signature(self, task_id: str) -> str:
        """The signature of a task's link: 43 characters that a URL takes as they are."""
        digest = hmac.digest(self._key, task_id.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def signed(self, task_id: str, signature: str) -> bool:
        """Whether the signature is this task's; takes the same time whatever is wrong with it."""
        given = signature.encode("utf-8", "surrogatepass")
        return hmac.compare_digest(self.signature(task_id).encode(), given)
