"""Diffs of definitions: what patch(1) makes the one of the other with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.workflows import difference
from appliance.workflows.difference import diff
from appliance.workflows.writing import to_yaml

TEXTS = st.text("ab \n:#'\"é", max_size=12)
STEPS = st.lists(st.fixed_dictionaries({"id": TEXTS, "with": st.dictionaries(TEXTS, TEXTS, max_size=3)}), max_size=8)
LABELS = ("w (revision 1)", "w (new)")


def definition(steps: Any) -> dict[str, Any]:
    return {"name": "w", "steps": steps, "output": {"z": 1, "a": 2}}


def test_the_order_of_keys_makes_no_difference() -> None:
    one, other = {"name": "w", "output": {"a": 1, "b": 2}}, {"output": {"b": 2, "a": 1}, "name": "w"}
    assert diff(one, other, LABELS) == ""
    assert diff(None, None, LABELS) == ""


def test_what_is_not_there_is_dev_null() -> None:
    assert diff(None, {"name": "w"}, LABELS) == "--- /dev/null\n+++ w (new)\n@@ -0,0 +1 @@\n+name: w\n"
    assert diff({"name": "w"}, None, LABELS) == "--- w (revision 1)\n+++ /dev/null\n@@ -1 +0,0 @@\n-name: w\n"


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch(1) is not installed")
@pytest.mark.parametrize("most", [difference.MAX_LINES, 0])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=STEPS, new=STEPS)
def test_patch_makes_the_new_one_of_the_old(
    most: int, old: Any, new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(difference, "MAX_LINES", most)
    file = tmp_path / "w.yaml"
    sorted_output = {"output": {"a": 2, "z": 1}}
    before, after = ({**definition(_sorted(steps)), **sorted_output} for steps in (old, new))
    file.write_text(to_yaml(before), "utf-8")
    patch = diff(definition(old), definition(new), LABELS)
    assert (patch == "") == (old == new)
    if patch:
        subprocess.run(["patch", "-s", str(file)], input=patch.encode(), check=True, timeout=10)
    assert file.read_text("utf-8") == to_yaml(after)


def _sorted(steps: Any) -> Any:
    return [{"id": step["id"], "with": dict(sorted(step["with"].items()))} for step in steps]


def test_of_very_large_ones_it_is_coarse_and_quick() -> None:
    old = [{"id": f"s{n}", "action": "log", "with": {"message": f"m{n}"}} for n in range(8000)]
    new = [{**step, "with": {"message": f"n{n}"}} for n, step in enumerate(old[:-1])] + old[-1:]
    lines = diff(definition(old), definition(new), LABELS).splitlines()
    assert lines[2].startswith("@@ -")
    assert sum(line.startswith("@@") for line in lines) == 1
    few = [*old[:100], {"id": "new"}, *old[100:]]
    assert [line for line in diff(definition(old), definition(few), LABELS).splitlines()[2:] if line[0] in "+-"] == [
        "+  - {id: new}"
    ]
