"""``appliance submit`` and ``appliance publish``: events into the running process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option
from appliance.cli.exits import Exit, Failure
from appliance.cli.tables import emit, fields

pairs_argument = click.argument("pairs", metavar="[NAME=VALUE]...", nargs=-1)
data_option = click.option("--data", metavar="JSON", help="The data as JSON; @FILE reads a file, - standard input.")


@click.command()
@click.argument("template_id")
@pairs_argument
@data_option
@click.option("--org-id", metavar="ID", help="The organisation that the form belongs to.")
@click.option("--idempotency-key", metavar="KEY", help="Submitting again with the same key does nothing more.")
@json_option
@connected
def submit(
    client: Client,
    template_id: str,
    pairs: tuple[str, ...],
    data: str | None,
    org_id: str | None,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Submit a form: its name and its fields, as POST /submit takes them.

    \b
    appliance submit contact email=ann@example.org name=Ann
    """
    body: dict[str, Any] = {"template_id": template_id, "data": gather(pairs, data)}
    if org_id is not None:
        body["org_id"] = org_id
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    _report(client.post("/submit", body, headers), as_json)


@click.command()
@click.argument("type", required=False)
@pairs_argument
@data_option
@click.option("--source", default="appliance-cli", show_default=True, metavar="URI", help="Who says so.")
@click.option("--id", metavar="ID", help="The sender's id; publishing it again from the same source does nothing more.")
@click.option("--subject", metavar="TEXT", help="What the event is about.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="A further attribute; repeatable.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), help="The stream to go into. [normal]")
@click.option("--file", metavar="FILE", help="A whole CloudEvent, or a list of them, as JSON; - is standard input.")
@json_option
@connected
def publish(
    client: Client,
    type: str | None,
    pairs: tuple[str, ...],
    data: str | None,
    source: str,
    id: str | None,
    subject: str | None,
    attributes: tuple[str, ...],
    priority: str | None,
    file: str | None,
    as_json: bool,
) -> None:
    """Publish an event: its type and its data, as POST /api/v1/events takes them (CloudEvents 1.0).

    \b
    appliance publish order.paid total=5 currency=EUR --subject order-17
    appliance publish --file event.json
    """
    if (type is None) == (file is None):
        raise click.UsageError("give either a TYPE or --file")
    document: Any
    if file is not None:
        document = read_json(file, "--file")
    else:
        from appliance.identifiers import uuid7

        extra = dict(map(_split, attributes))
        named = {"subject": subject} if subject is not None else {}
        document = {
            **extra,
            **named,
            "specversion": "1.0",
            "id": id or uuid7(),
            "source": source,
            "type": type,
            "data": gather(pairs, data),
        }
    batch = isinstance(document, list)
    media = "application/cloudevents-batch+json" if batch else "application/cloudevents+json"
    path = f"{API}/events" + (f"?priority={priority}" if priority else "")
    _report(client.post(path, document, {"Content-Type": media}), as_json)


def read_json(name: str, option: str) -> Any:
    """The JSON in a file, or on standard input for ``-``."""
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return json.loads(raw)
    except OSError as error:
        raise Failure(f"{option}: {error}", Exit.USAGE) from None
    except ValueError as error:
        raise Failure(f"{option}: {name}: not JSON: {error}", Exit.USAGE) from None


def gather(pairs: tuple[str, ...], data: str | None) -> Any:
    """``--data``, with the ``NAME=VALUE`` arguments (texts) put over it."""
    base = json_value(data, "--data") if data is not None else {}
    if not pairs:
        return base
    if not isinstance(base, dict):
        raise click.UsageError("NAME=VALUE needs --data to be a JSON object")
    return {**base, **dict(map(_split, pairs))}


def json_value(text: str, option: str) -> Any:
    """The JSON that an option was given: itself, in a file (``@FILE``), or on standard input (``-``)."""
    if text == "-" or text[:1] == "@":
        return read_json(text.removeprefix("@"), option)
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{option}: not JSON: {error}") from None


def _split(pair: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not name or not equals:
        raise click.UsageError(f"expected NAME=VALUE, got {pair!r}")
    return name, value


def _report(answer: Any, as_json: bool) -> None:
    shown = answer.get("items", [answer]) if isinstance(answer, dict) else answer
    text = "\n".join(fields((("id", one.get("id")), ("status", one.get("status")))) for one in shown)
    emit(answer, text, as_json=as_json)
