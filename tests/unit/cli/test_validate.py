"""``appliance validate``: what is odd is a warning, and no problem."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.cli.double import Invoke

CIRCLE = """
name: {name}
trigger: {{event: {name}.due}}
steps: [{{id: tell, action: publish, with: {{type: {other}.due}}}}]
"""


def test_workflows_that_trigger_themselves_are_a_warning(tmp_path: Path, invoke: Invoke) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(CIRCLE.format(name=name, other=other))
    path = "triggers itself: a -publishes b.due-> b -publishes a.due-> a"
    code, out, _ = invoke("validate", str(tmp_path))
    assert (code, out.splitlines()) == (0, [f"warning: {tmp_path}/a.yaml: {path}", "ok: 2 workflows"])
    document = json.loads(invoke("validate", str(tmp_path), "--json")[1])
    assert (document["ok"], document["problems"]) == (True, [])
    assert document["warnings"] == [f"{tmp_path}/a.yaml: {path}"]
    (tmp_path / "b.yaml").unlink()
    assert json.loads(invoke("validate", str(tmp_path), "--json")[1])["warnings"] == []
