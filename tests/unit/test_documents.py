"""The documents that are made from declarations are what the declarations say."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from appliance.configuration import describe, load_settings
from appliance.observe.metrics import METRICS
from tests.documents import PAGES, ROOT


@pytest.mark.parametrize("name", PAGES)
def test_is_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text("utf-8") == PAGES[name](), f"{name} is out of date: run python -m tests.documents"


def test_the_sample_lists_every_key_with_its_default(tmp_path: Path) -> None:
    values = YAML(typ="safe", pure=True).load((ROOT / "config" / "appliance.yaml").read_text("utf-8"))
    listed: set[tuple[str, ...]] = {
        (name,) for name, value in values.items() if not isinstance(value, dict) or not value
    }
    listed |= {(name, key) for name, section in values.items() if isinstance(section, dict) for key in section}
    assert listed == {setting.path for setting in describe()} - {("config_dir",)}
    sample = load_settings(cli={"config_dir": ROOT / "config"}, environ={}, cwd=tmp_path)
    assert sample.model_dump(exclude={"config_dir"}) == load_settings(cli={}, environ={}, cwd=tmp_path).model_dump(
        exclude={"config_dir"}
    )


def test_every_setting_and_metric_is_explained() -> None:
    assert all(setting.description.endswith(".") for setting in describe())
    assert all(metric.name.startswith("appliance_") and metric.description for metric in METRICS.describe())
