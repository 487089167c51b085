"""docs/sources.md is true: its tables, its two sources and its event; and every key of a file is in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from appliance.sources.definition import read_source
from appliance.sources.models import EventModel, SourceModel
from tests.integration.test_sources import Stand, stand
from tests.servers import wait_until

__all__ = ["stand"]
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "sources.md").read_text("utf-8")
EXAMPLES = ROOT / "config" / "sources" / "examples"
TABLES, ROWS = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
FILES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
(EVENT,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
KEYS = dict(re.findall(r"^\| `([a-z.]+)` \| (.*?) \|", TEXT.split("## The keys")[1].split("\n## ")[0], re.MULTILINE))


@pytest.mark.parametrize(("name", "text"), [("subscriptions", FILES[0]), ("newsletters", FILES[1])])
def test_the_examples_are_those_of_the_page(name: str, text: str) -> None:
    file = (EXAMPLES / f"{name}.yaml").read_text("utf-8")
    assert file.startswith("# ")
    assert file.split("\n", 1)[1] == text
    assert not read_source(EXAMPLES / f"{name}.yaml").enabled


def test_every_key_is_on_the_page_with_its_default() -> None:
    assert set(KEYS) == {*SourceModel.model_fields, *(f"event.{name}" for name in EventModel.model_fields)}
    given = {"name": "n", "postgresql": "p", "query": "q", "cursor": "c", "key": "k", "event": {}}
    defaults = SourceModel.model_validate(given).model_dump(mode="json")
    for name in ("enabled", "every", "lag", "batch", "start", "timezone", "decimals", "priority"):
        assert KEYS[name] == f"`{json.dumps(defaults[name]).strip(chr(34))}`"


async def test_the_rows_of_the_page_become_its_event(stand: Stand) -> None:
    await stand.sql("DROP TABLE subscriptions")
    for statement in filter(str.strip, TABLES.split(";")):
        await stand.sql(statement)
    for name, text in zip(("subscriptions", "newsletters"), FILES, strict=True):
        changes = (("enabled: false", "enabled: true"), ("start: now", "start: beginning"), ("30s", "100ms"))
        for before, after in (*changes, ("secrets.shop_database", "secrets.shop")):
            assert before in text
            text = text.replace(before, after)
        stand.write(text, name)
    for statement in filter(str.strip, ROWS.split(";")):
        await stand.sql(statement)
    async with stand.running(stand.poller()):
        await wait_until(lambda: stand.has(1), "the event")
        (event,) = await stand.events()
        assert event.to_cloudevent() == json.loads(EVENT)
        await stand.sql("INSERT INTO newsletters (email, newsletter) VALUES ('bob@example.org', 'weekly')")
        await wait_until(lambda: stand.has(2), "who joined")
        await stand.sql("UPDATE newsletters SET active = false, updated_at = now()")
        await wait_until(lambda: stand.has(3), "who left")
        await stand.polls(name="newsletters")
    types = [event.type for event in await stand.events()]
    assert types == ["subscription.created", "newsletter.joined", "newsletter.left"]
