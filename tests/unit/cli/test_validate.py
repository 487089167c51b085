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
LIMITED = """\
name: w
trigger: {event: t}
concurrency:
  - 50
  - {key: "{{ evnt.data.tenant }}", limit: 5}
rate_limit:
  limit: 5
  period: 20ms
steps:
  - {id: note, action: log, with: {message: "{{ events|length }}"}}
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


def test_flow_control_that_is_wrong_is_told_with_its_place(tmp_path: Path, invoke: Invoke) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(LIMITED)
    code, out, err = invoke("validate", str(path))
    assert code != 0
    assert f"{path}:8:3: rate_limit.period: expected at least 100ms" in out + err
    path.write_text(LIMITED.replace("20ms", "20s"))
    lines = "".join(invoke("validate", str(path))[1:]).splitlines()
    near = "did you mean event? (expected one of event, input)"
    assert f"{path}:5:6: concurrency[1].key: unknown name 'evnt'; {near}" in lines
    assert any(line.startswith(f"{path}:10:36: steps[0].with.message: unknown name 'events'") for line in lines)
    path.write_text(LIMITED.replace("20ms", "20s").replace("evnt", "event").replace("events|length", "event.id"))
    assert invoke("validate", str(path))[:2] == (0, "ok: 1 workflow\n")
