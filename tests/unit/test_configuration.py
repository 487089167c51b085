"""Settings from all their sources, and what is said about mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from appliance.configuration import load_settings, secret_values
from appliance.errors import ConfigurationError
from appliance.settings import Settings


class Place:
    """A working directory with the files that settings come from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "config").mkdir()

    def file(self, text: str) -> None:
        (self.path / "config" / "appliance.yaml").write_text(text)

    def dotenv(self, text: str) -> None:
        (self.path / ".env").write_text(text)

    def load(self, cli: Mapping[str, Any] | None = None, **environ: str) -> Settings:
        return load_settings(cli=cli or {}, environ=environ, cwd=self.path)

    def problems(self, cli: Mapping[str, Any] | None = None, **environ: str) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            self.load(cli, **environ)
        return [str(problem).replace(f"{self.path}/", "") for problem in caught.value.problems]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_stronger_source_wins_key_by_key(place: Place) -> None:
    place.file("http: {port: 1, max_depth: 11, max_batch: 12, host: a}\nnamespace: file")
    place.dotenv("APPLIANCE_HTTP__PORT=2\nexport APPLIANCE_HTTP__MAX_BATCH=22\nAPPLIANCE_HTTP__HOST='b'\n# comment\n")
    settings = place.load({"http": {"port": 4}}, APPLIANCE_HTTP__PORT="3", APPLIANCE_HTTP__HOST="c")
    http = settings.http
    assert (http.port, http.host, http.max_batch, http.max_depth) == (4, "c", 22, 11)
    assert settings.namespace == "file"
    assert http.header_timeout == timedelta(seconds=10)


def test_plain_names_work_and_ours_are_stronger(place: Place) -> None:
    settings = place.load(
        PORT="9000",
        REDIS_URL="redis://plain",
        DATABASE_URL="postgresql://plain",
        APPLIANCE_REDIS_URL="redis://ours",
        SMTP_HOST="mail",
        SMTP_PORT="25",
        SMTP_USER="me",
        SMTP_PASSWORD="pass",
        SMTP_USE_TLS="false",
        FROM_EMAIL="me@example.org",
    )
    assert settings.http.port == 9000
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://ours"
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://plain"
    smtp = settings.smtp
    assert (smtp.host, smtp.port, smtp.user, smtp.use_tls, smtp.from_email) == (
        "mail",
        25,
        "me",
        False,
        "me@example.org",
    )
    assert smtp.password.get_secret_value() == "pass"


def test_the_environment_is_stronger_than_the_dotenv_file_whatever_the_name(place: Place) -> None:
    place.dotenv("APPLIANCE_HTTP__PORT=1\nAPPLIANCE_API_KEY_FILE=/dev/null\n")
    settings = place.load(PORT="2", APPLIANCE_API_KEY="k")
    assert settings.http.port == 2
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "k"


def test_settings_made_by_hand_read_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.dotenv("APPLIANCE_NAMESPACE=dotenv")
    place.file("namespace: file")
    monkeypatch.chdir(place.path)
    monkeypatch.setenv("APPLIANCE_NAMESPACE", "environment")
    assert Settings().namespace == "appliance"
    assert place.load().namespace == "dotenv"  # of the environment, only what it is given


def test_the_file_lies_in_the_folder_that_a_stronger_source_names(place: Place) -> None:
    other = place.path / "other"
    other.mkdir()
    (other / "appliance.yaml").write_text("namespace: other")
    assert place.load(APPLIANCE_CONFIG_DIR="other").namespace == "other"
    assert place.load({"config_dir": Path("config")}, APPLIANCE_CONFIG_DIR="other").namespace == "appliance"


def test_a_folder_that_is_named_must_be_there(place: Place) -> None:
    assert place.problems({"config_dir": "gone"}) == ["--config-dir: there is no folder gone"]
    assert place.problems(APPLIANCE_CONFIG_DIR="gone") == ["APPLIANCE_CONFIG_DIR: there is no folder gone"]
    (place.path / "config").rmdir()
    assert place.load().config_dir == Path("config")


@pytest.mark.parametrize("text", ['["10.0.0.0/8", "::1/128"]', "10.0.0.0/8, ::1/128"])
def test_lists_are_json_or_separated_by_commas(place: Place, text: str) -> None:
    networks = place.load(APPLIANCE_OUTBOUND__ALLOWED_NETWORKS=text).outbound.allowed_networks
    assert networks == (ip_network("10.0.0.0/8"), ip_network("::1/128"))


def test_mappings_are_json_or_a_variable_per_entry(place: Place) -> None:
    settings = place.load(APPLIANCE_SECRETS__SMS_TOKEN="[token", APPLIANCE_PLUGINS='{"sms": {"url": "u"}}')
    assert {name: value.get_secret_value() for name, value in settings.secrets.items()} == {"sms_token": "[token"}
    assert settings.plugins == {"sms": {"url": "u"}}
    settings = place.load(APPLIANCE_PLUGINS='{"fax": {}}', APPLIANCE_PLUGINS__SMS='{"url": "u"}')
    assert settings.plugins == {"fax": {}, "sms": {"url": "u"}}


def test_empty_variables_count_as_unset(place: Place) -> None:
    place.dotenv("APPLIANCE_NAMESPACE=")
    settings = place.load(PORT="", REDIS_URL="", APPLIANCE_STREAM__LEASE="")
    assert settings == place.load()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("APPLIANCE_API_KEY_FILE", lambda s: s.api_key),
        ("DATABASE_URL_FILE", lambda s: s.database_url),
        ("SMTP_PASSWORD_FILE", lambda s: s.smtp.password),
        ("APPLIANCE_SMTP__PASSWORD_FILE", lambda s: s.smtp.password),
        ("APPLIANCE_SECRETS__TOKEN_FILE", lambda s: s.secrets["token"]),
    ],
)
def test_secrets_can_be_read_from_files(place: Place, name: str, read: Any) -> None:
    (place.path / "secret").write_text("postgresql://from/a-file\n")
    assert read(place.load(None, **{name: str(place.path / "secret")})).get_secret_value() == "postgresql://from/a-file"


def test_mistakes_about_secret_files(place: Place) -> None:
    assert place.problems(
        APPLIANCE_API_KEY="k",
        APPLIANCE_API_KEY_FILE="f",
        DATABASE_URL_FILE=str(place.path / "gone"),
        APPLIANCE_NAMESPACE_FILE="f",
    ) == [
        "DATABASE_URL_FILE: can't be read: [Errno 2] No such file or directory: 'gone'",
        "APPLIANCE_API_KEY_FILE: APPLIANCE_API_KEY is set as well; set one of them",
        "APPLIANCE_NAMESPACE_FILE: only secrets can be read from a file",
    ]


def test_mistakes_in_the_file_have_line_column_and_key(place: Place) -> None:
    place.file(
        "stream:\n  lease: soon\n  grup: x\nhttp:\n  port: 70000\noutbound:\n  allowed_networks:\n    - 1.2.3.4/99\n"
    )
    assert place.problems() == [
        "config/appliance.yaml:5:3: http.port: expected a value ≥ 0, ≤ 65535",
        "config/appliance.yaml:2:3: stream.lease: expected a duration such as 500ms, 30s, 10m, 1h30m or 2d, got 'soon'",
        "config/appliance.yaml:3:3: stream.grup: no such setting; did you mean group?",
        "config/appliance.yaml:8:7: outbound.allowed_networks.0: expected a network such as 10.0.0.0/8",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("http:\n\tport: 1", "config/appliance.yaml:2:1: found character '\\t' that cannot start any token"),
        ("http: {}\nhttp: {}", 'config/appliance.yaml:2:1: found duplicate key "http" with value "{}"'),
        ("- a", "config/appliance.yaml:1:1: expected a mapping"),
        ("1: x", "config/appliance.yaml:1:1: 1: no such setting"),
        ("config_dir: x", "config/appliance.yaml:1:1: config_dir: can't be set in a file inside that folder"),
        (
            "stream: 5",
            "config/appliance.yaml:1:1: stream: expected a mapping",
        ),
    ],
)
def test_a_file_that_is_none(place: Place, text: str, problem: str) -> None:
    place.file(text)
    (found,) = place.problems()
    assert found.startswith(problem)


def test_mistakes_in_variables_name_the_variable(place: Place) -> None:
    place.dotenv("OTHER=1\n\nAPPLIANCE_STREAM__LEAS=10s\n'")
    assert place.problems(APPLIANCE_HTTP_PORT="1", PORT="x", APPLIANCE_OUTBOUND__ALLOWED_PORTS="[80") == [
        ".env:4: not a line of the form NAME=value",
        ".env:3: APPLIANCE_STREAM__LEAS: no such setting (expected APPLIANCE_STREAM__LEASE)",
        "APPLIANCE_HTTP_PORT: no such setting (expected APPLIANCE_HTTP__PORT)",
        "PORT: expected a whole number",
        "APPLIANCE_OUTBOUND__ALLOWED_PORTS: expected a list",
    ]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("APPLIANCE_STREAM__LEASE", "1ms", "expected a value ≥ 500ms, ≤ 1d"),
        ("APPLIANCE_STREAM__BLOCK", "0", "expected a value ≥ 10ms, ≤ 10s"),
        ("APPLIANCE_STORE__RETENTION", "0", "expected a value ≥ 1h"),
        ("APPLIANCE_HTTP__PORT", "65536", "expected a value ≥ 0, ≤ 65535"),
        ("APPLIANCE_STORE__RETENTION", "99999999999999999999d", "no such duration: 8.64e+24 seconds"),
        ("REDIS_URL", "http://user:word@cache", "expected a URL such as redis://localhost:6379/0"),
        ("DATABASE_URL", "mysql://db", "expected a URL such as postgresql://user@localhost/appliance"),
        ("APPLIANCE_OUTBOUND__ALLOWED_NETWORKS", "10.0.0.0/33", "expected a network such as 10.0.0.0/8"),
        ("APPLIANCE_OUTBOUND__ALLOWED_NETWORKS", '["10.0.0.0/8"', "expected a list"),
        ("APPLIANCE_SECRETS", "sms", "expected a mapping"),
    ],
)
def test_values_out_of_bounds_are_answered_with_the_bounds(place: Place, name: str, text: str, problem: str) -> None:
    assert place.problems(None, **{name: text}) == [f"{name}: {problem}"]


def test_mistakes_on_the_command_line_name_the_option(place: Place) -> None:
    (problem,) = place.problems({"http": {"port": -1}})
    assert problem == "--port: expected a value ≥ 0, ≤ 65535"


def test_a_wrong_secret_is_not_shown(place: Place) -> None:
    place.file("api_key: [hidden-value]\nsmtp: {password: {a: hidden-value}}")
    assert not any("hidden-value" in problem for problem in place.problems())


def test_what_kubernetes_sets_beside_a_service_of_our_name_is_ignored(place: Place) -> None:
    settings = place.load(
        APPLIANCE_SERVICE_HOST="10.0.0.1",
        APPLIANCE_SERVICE_PORT="8000",
        APPLIANCE_SERVICE_PORT_HTTP="8000",
        APPLIANCE_PORT="tcp://10.0.0.1:8000",
        APPLIANCE_PORT_8000_TCP="tcp://10.0.0.1:8000",
        APPLIANCE_VALKEY_SERVICE_HOST="10.0.0.2",
        APPLIANCE_URL="http://read-by-the-client",
    )
    assert settings == place.load()


def test_all_secrets_are_known_for_masking(place: Place) -> None:
    settings = place.load(
        REDIS_URL="redis://:p%40ss@host/0",
        DATABASE_URL="postgresql://host/db",
        APPLIANCE_API_KEY="the-key",
        APPLIANCE_SECRETS__TOKEN="the-token",
    )
    assert set(secret_values(settings)) == {"p%40ss", "p@ss", "the-key", "the-token"}
    assert "the-key" not in repr(settings)
