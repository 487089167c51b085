"""The settings of ``send_email``: the core's section ``smtp``, and what ``plugins.send_email`` sets instead."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from appliance.plugin import Duration
from appliance_send_email.addresses import sender

IMPLICIT_TLS_PORT = 465


class SmtpSettings(BaseModel):
    """Field for field what the core's section ``smtp`` describes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = ""
    port: int = Field(587, ge=1, le=65535)
    user: str = ""
    password: SecretStr = SecretStr("")
    use_tls: bool = True
    verify: bool = True
    from_email: str = "appliance@localhost"
    max_connections: int = Field(8, ge=1, le=100)
    timeout: Duration = timedelta(seconds=20)

    @field_validator("from_email")
    @classmethod
    def _one_sender(cls, text: str) -> str:
        sender(text)
        return text
