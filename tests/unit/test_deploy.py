"""The files for deployment agree with the code: metrics, settings and streams go by the names that exist."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from appliance.configuration import describe
from appliance.observe.metrics import METRICS
from appliance.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "config" / "deploy"
WATCHERS = ("prometheus/alerts.yml", "grafana/dashboard.json")
MANIFESTS = sorted(DEPLOY.glob("kubernetes/*.yaml"))
SETTINGS_BY_NAME = {name for setting in describe() for name in setting.variables}


def load(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text("utf-8"))


def metric_series() -> set[str]:
    series = set()
    for metric in METRICS.describe():
        endings = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        series |= {metric.name + ending for ending in endings}
    return series


@pytest.mark.parametrize("name", WATCHERS)
def test_metrics_that_are_watched_exist(name: str) -> None:
    used = set(re.findall(r"\bappliance_\w+", (DEPLOY / name).read_text("utf-8")))
    assert used
    assert used <= metric_series()


def test_labels_that_are_watched_exist() -> None:
    text = (DEPLOY / "grafana/dashboard.json").read_text("utf-8") + (DEPLOY / "prometheus/alerts.yml").read_text(
        "utf-8"
    )
    labels = {label for metric in METRICS.describe() for label in metric.labels} | {"le"}
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", text) for label in group.split(",")}
    assert grouped <= labels


def test_the_files_can_be_read() -> None:
    assert len(json.loads((DEPLOY / "grafana/dashboard.json").read_text("utf-8"))["panels"]) == 8
    rules = load(DEPLOY / "prometheus/alerts.yml")["groups"][0]["rules"]
    assert all(rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"] for rule in rules)
    kustomization = load(DEPLOY / "kubernetes/kustomization.yaml")
    others = {path.name for path in MANIFESTS} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == others


def environments() -> Iterator[tuple[str, str]]:
    for name in load(ROOT / "docker-compose.yml")["services"]["appliance"]["environment"]:
        yield "docker-compose.yml", name
    (container,) = load(DEPLOY / "kubernetes/deployment.yaml")["spec"]["template"]["spec"]["containers"]
    for variable in container["env"]:
        yield "deployment.yaml", variable["name"]
    for name in re.findall(r"APPLIANCE_\w+(?==)", (ROOT / "Dockerfile").read_text("utf-8")):
        yield "Dockerfile", name


@pytest.mark.parametrize(("file", "name"), list(environments()))
def test_variables_that_are_set_exist(file: str, name: str) -> None:
    assert name in SETTINGS_BY_NAME


def test_what_is_scaled_by_are_our_streams() -> None:
    settings = Settings()
    triggers = [trigger["metadata"] for trigger in load(DEPLOY / "kubernetes/scaledobject.yaml")["spec"]["triggers"]]
    assert [trigger["stream"] for trigger in triggers] == [
        f"{settings.namespace}:events:{priority}" for priority in ("high", "normal", "low")
    ]
    assert {trigger["consumerGroup"] for trigger in triggers} == {settings.stream.group}


def test_every_stop_has_more_time_than_the_grace() -> None:
    grace_s = Settings().engine.grace.total_seconds()
    compose = load(ROOT / "docker-compose.yml")["services"]["appliance"]["stop_grace_period"]
    pod = load(DEPLOY / "kubernetes/deployment.yaml")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    unit = re.search(r"TimeoutStopSec=(\d+)", (DEPLOY / "systemd/appliance.service").read_text("utf-8"))
    assert unit is not None
    assert min(int(compose.rstrip("s")), pod, int(unit[1])) >= grace_s + 15


def test_replicas_can_share_a_host() -> None:
    services = load(ROOT / "docker-compose.yml")["services"]
    assert not any("container_name" in service for service in services.values())
    (ports,) = services["appliance"]["ports"]
    assert "-" in ports  # a range: each replica takes a free one
    assert all(
        dependency["condition"] == "service_healthy" for dependency in services["appliance"]["depends_on"].values()
    )


def test_the_locks_pin_everything_and_name_no_host() -> None:
    development = (ROOT / "requirements.lock").read_text("utf-8")
    image = (DEPLOY / "requirements.lock").read_text("utf-8")
    for lock in (development, image):
        assert "://" not in lock
        assert not re.search(r"^--", lock, re.MULTILINE)
        names = [line for line in lock.splitlines() if re.match(r"[a-zA-Z0-9]", line)]
        assert names
        assert all("==" in name for name in names)
        assert lock.count("--hash=sha256:") >= len(names)
    pins = set(re.findall(r"^\S+==\S+", image, re.MULTILINE))
    assert pins <= set(re.findall(r"^\S+==\S+", development, re.MULTILINE))


def test_the_locks_cover_the_declared_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    runtime = {_name(text) for text in project["dependencies"] + extras["embedded"]}
    everything = runtime | {_name(text) for text in extras["dev"]} - {"appliance"}
    for path, wanted in ((DEPLOY / "requirements.lock", runtime), (ROOT / "requirements.lock", everything)):
        locked = {_name(line) for line in re.findall(r"^\S+==", path.read_text("utf-8"), re.MULTILINE)}
        assert wanted <= locked, "out of date: run make lock"


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return match[0].lower().replace("_", "-").replace(".", "-")
