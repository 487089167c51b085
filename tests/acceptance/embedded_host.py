"""A process that runs both embedded servers until it is told, or made, to stop: the subject of test_embedded.py.

``python -m tests.acceptance.embedded_host DATA_DIR [VALUE]`` stores VALUE on both servers, prints one JSON line
(URLs, process ids and the value that it found) once both answer, and waits.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from urllib.parse import unquote

import psycopg
import uvloop

from appliance.datadir import DataDir
from appliance.embedded.postgres import EmbeddedPostgres
from appliance.embedded.valkey import EmbeddedValkey
from appliance.errors import ConfigurationError


async def host(path: Path, value: str | None) -> None:
    with DataDir.open(path) as datadir:
        async with EmbeddedValkey(datadir) as valkey, EmbeddedPostgres(datadir, durable=False) as postgres:
            assert valkey.process is not None
            assert postgres.process is not None
            found = await exchange(valkey.url, postgres.url, value)
            pids = [valkey.process.pid, postgres.process.pid]
            report = {"valkey": valkey.url, "postgres": postgres.url, "pids": pids, "found": found}
            sys.stdout.write(json.dumps(report) + "\n")
            sys.stdout.flush()
            await asyncio.Event().wait()


async def exchange(valkey_url: str, postgres_url: str, value: str | None) -> list[str | None]:
    """What both servers hold, before ``value`` (if any) is put in its place."""
    found = [await speak(valkey_url, "GET value")]
    if value is not None:
        await speak(valkey_url, f"SET value {value}")
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
        row = await (await connection.execute("SELECT max(value) FROM kept")).fetchone()
        found.append(row[0] if row else None)
        if value is not None:
            await connection.execute("INSERT INTO kept VALUES (%s)", (value,))
    return found


async def speak(valkey_url: str, command: str) -> str | None:
    """One inline command and its reply. (No client library: this must run under any interpreter there is.)"""
    reader, writer = await asyncio.open_unix_connection(unquote(valkey_url.removeprefix("unix://")))
    try:
        writer.write(f"{command}\r\n".encode())
        head = await reader.readline()
        return (await reader.readline()).decode().strip() if head[:1] == b"$" and head != b"$-1\r\n" else None
    finally:
        writer.close()


if __name__ == "__main__":
    try:
        uvloop.run(host(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
    except ConfigurationError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass
