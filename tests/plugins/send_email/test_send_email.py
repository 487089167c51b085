"""send_email over a scripted mail server, and into the outbox."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.headerregistry import Address
from pathlib import Path
from typing import Any

import pytest
from appliance_send_email import action
from appliance_send_email.addresses import sender
from pydantic import ValidationError

from appliance.events import new_event
from appliance.plugin import Reject, Retry
from appliance.testing import Outcome, Recorded, open_resource, run_action
from tests.smtp_sink import DROP, HANG, SmtpSink, smtp_sink

ANN = {"to": "ann@example.org", "subject": "Hello", "body": "Hi Ann\n"}


class Post:
    """A mailer over a sink, kept open over several mails."""

    def __init__(self, sink: SmtpSink, resource: Any) -> None:
        self.sink = sink
        self.resource = resource

    async def send(self, params: dict[str, Any], **context: Any) -> Outcome:
        return await run_action(action, params, resource=self.resource, **context)


@asynccontextmanager
async def mailer(tmp_path: Path, sink: SmtpSink, **settings: Any) -> AsyncIterator[Any]:
    own = {"host": "127.0.0.1", "port": sink.port, "from_email": "App <app@example.com>", **settings}
    async with open_resource(action, own, data_dir=tmp_path) as resource:
        yield resource


@asynccontextmanager
async def post_office(tmp_path: Path, **settings: Any) -> AsyncIterator[Post]:
    async with smtp_sink() as sink:
        own = {
            "host": "127.0.0.1",
            "port": sink.port,
            "use_tls": False,
            "from_email": "App <app@example.com>",
            **settings,
        }
        async with open_resource(action, own, data_dir=tmp_path) as resource:
            yield Post(sink, resource)


@pytest.fixture
async def post(tmp_path: Path) -> AsyncIterator[Post]:
    async with post_office(tmp_path) as made:
        yield made


async def test_sends_one_mail_to_each_recipient_and_keeps_bcc_to_itself(post: Post) -> None:
    outcome = await post.send(
        {**ANN, "cc": ["bo@example.org"], "bcc": "cy@example.org", "reply_to": "desk@example.com", "html": "<p>Hi</p>"}
    )

    assert {mail.recipients for mail in post.sink.received} == {
        ("ann@example.org",), ("bo@example.org",), ("cy@example.org",)
    }  # fmt: skip
    message = post.sink.received[0].message
    assert message["From"] == "App <app@example.com>"
    assert (message["To"], message["Cc"], message["Bcc"]) == ("ann@example.org", "bo@example.org", None)
    assert (message["Reply-To"], message["Subject"]) == ("desk@example.com", "Hello")
    assert message["Auto-Submitted"] == "auto-generated"
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert (plain.get_content(), html.get_content()) == ("Hi Ann\n", "<p>Hi</p>\n")
    assert post.sink.received[0].sender == "app@example.com"
    assert outcome.output == {"message_ids": [message["Message-ID"]]}
    assert sorted((d.channel, d.recipient, d.status, d.message_id) for d in outcome.deliveries) == [
        ("email", f"{name}@example.org", "sent", message["Message-ID"]) for name in ("ann", "bo", "cy")
    ]


async def test_the_message_id_belongs_to_the_idempotency_key(post: Post) -> None:
    first = await post.send(ANN, idempotency_key="one")
    again = await post.send(ANN, idempotency_key="one", attempt=2)
    other = await post.send(ANN, idempotency_key="two")

    assert first.output == again.output != other.output


async def test_whom_an_earlier_attempt_reached_gets_no_second_mail(post: Post) -> None:
    before = {("email", "ann@example.org"): "<before@example.com>"}
    outcome = await post.send({**ANN, "cc": "bo@example.org"}, delivered_before=before)

    assert [mail.recipients for mail in post.sink.received] == [("bo@example.org",)]
    assert [delivery.recipient for delivery in outcome.deliveries] == ["bo@example.org"]


async def test_non_ascii_travels_as_seven_bits(post: Post) -> None:
    await post.send({"to": "ann@bücher.example", "subject": "Grüße 🎉", "body": "Zażółć\n.\n..dots\n"})

    mail = post.sink.received[0]
    assert mail.content.isascii()
    assert mail.recipients == ("ann@xn--bcher-kva.example",)
    assert mail.message["Subject"] == "Grüße 🎉"
    assert mail.message.get_content().splitlines() == ["Zażółć", ".", "..dots"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"to": "ann@example.org\r\nBcc: eve@example.org"},
        {"to": "ann@example.org, eve@example.org"},
        {"to": ["ann@example.org,eve@example.org"]},
        {"to": "ann@example.org eve@example.org"},
        {"to": "Ann <ann@example.org>"},
        {"to": "<ann@example.org>"},
        {"to": '"ann smith"@example.org'},
        {"to": "ann"},
        {"to": "ann@"},
        {"to": "@example.org"},
        {"to": "ann@-bad-.example"},
        {"to": "ann@[127.0.0.1]"},
        {"to": "ann\0@example.org"},
        {"to": "ann@example.org\n"},
        {"to": "änn@example.org"},
        {"to": "a" * 65 + "@example.org"},
        {"to": "ann@" + "a." * 130 + "org"},
        {"to": ""},
        {"to": []},
        {"to": [f"a{n}@example.org" for n in range(101)]},
        {"cc": "bo@example.org\nX: y"},
        {"bcc": ["cy@example.org", "eve@example.org;"]},
        {"reply_to": "desk@example.com, eve@example.org"},
        {"from": "App <app@example.com>\r\nBcc: eve@example.org"},
        {"from": "a@example.com, b@example.com"},
        {"from": "Eve\0 <a@example.com>"},
        {"from": "Eve\x85Bcc: x <a@example.com>"},
        {"from": "x" * 201 + " <a@example.com>"},
        {"subject": "Hello\r\nBcc: eve@example.org"},
        {"subject": "Hello\0"},
        {"subject": "Hello\x85there"},
        {"subject": "Hello\u2028there"},
        {"subject": "x" * 1000},
        {"body": "Hi\0"},
        {"body": None},
        {"template": "thanks"},
        {"template": "../secrets", "body": None},
        {"colour": "red"},
    ],
    ids=repr,
)
async def test_refuses_parameters_that_could_smuggle_something_in(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        await run_action(action, {**ANN, **wrong}, settings={}, data_dir=tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a@example.com", ""),
        ("<a@example.com>", ""),
        ("App <a@example.com>", "App"),
        ('"Doe, J." <a@example.com>', "Doe, J."),
        (r'"a \"b\" \\c" <a@example.com>', r'a "b" \c'),
        ('say "hi" <a@example.com>', 'say "hi"'),
    ],
)
def test_a_sender_may_have_a_name(text: str, name: str) -> None:
    assert sender(text) == Address(display_name=name, addr_spec="a@example.com")


async def test_a_default_sender_must_be_one_address(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="from_email"):
        await run_action(action, ANN, settings={"from_email": "a@example.org, b@example.org"}, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("verb", "reply", "error", "status"),
    [
        ("RCPT", "550 no such user", Reject, "rejected"),
        ("RCPT", "451 greylisted", Retry, "failed"),
        ("MAIL", "553 sender refused", Reject, "rejected"),
        ("MAIL", "452 full", Retry, "failed"),
        ("DATA", "451 later", Retry, "failed"),
        (".", "554 spam", Reject, "rejected"),
        (".", "452 disk full", Retry, "failed"),
        ("MAIL", DROP, Retry, "failed"),
        (".", DROP, Retry, "failed"),
        ("EHLO", DROP, Retry, "failed"),
    ],
)
async def test_a_refusal_is_final_or_not_as_its_code_says(
    verb: str, reply: str, error: type[Exception], status: str, post: Post
) -> None:
    post.sink.say(verb, reply)
    recorded = Recorded()
    with pytest.raises(error):
        await post.send(ANN, recorded=recorded)
    assert [delivery.status for delivery in recorded.deliveries] == [status]

    await post.send(ANN)  # the connection, or another, serves the next mail
    assert post.sink.received[-1].recipients == ("ann@example.org",)


async def test_each_recipient_has_a_verdict_of_its_own(post: Post) -> None:
    post.sink.say("RCPT TO:<bo@example.org>", "550 no such user")
    post.sink.say("RCPT TO:<cy@example.org>", "451 greylisted")
    recorded = Recorded()

    with pytest.raises(Retry, match="1 of 3 recipients: the mail server refused: 451 greylisted"):
        await post.send({**ANN, "cc": ["bo@example.org", "cy@example.org"]}, recorded=recorded)

    assert {d.recipient[:2]: d.status for d in recorded.deliveries} == {"an": "sent", "bo": "rejected", "cy": "failed"}


async def test_one_recipient_refused_for_good_fails_the_step_after_the_others_got_theirs(post: Post) -> None:
    post.sink.say("RCPT TO:<bo@example.org>", "550 no such user")

    with pytest.raises(Reject, match="1 of 2 recipients"):
        await post.send({**ANN, "cc": ["bo@example.org"]})

    assert [mail.recipients for mail in post.sink.received] == [("ann@example.org",)]


async def test_a_server_that_dies_after_the_data_leaves_the_outcome_open(post: Post) -> None:
    post.sink.say(".", f"{DROP} kept")
    with pytest.raises(Retry, match="while it took the mail"):
        await post.send(ANN, idempotency_key="same")
    await post.send(ANN, idempotency_key="same", attempt=2)

    first, second = post.sink.received
    assert first.message["Message-ID"] == second.message["Message-ID"]


async def test_a_stalled_server_costs_its_time_limit_only(tmp_path: Path) -> None:
    async with post_office(tmp_path, timeout=0.1) as post:
        for verb in ("EHLO", "RCPT", "."):
            post.sink.say(verb, HANG)
            with pytest.raises(Retry, match="did not answer within"):
                await post.send(ANN)
        await post.send(ANN)
        assert len(post.sink.received) == 1


async def test_connections_are_kept_and_no_more_than_allowed(tmp_path: Path) -> None:
    async with post_office(tmp_path, max_connections=3) as post:
        await asyncio.gather(*(post.send(ANN) for _ in range(30)))
        assert len(post.sink.received) == 30
        assert post.sink.connections == post.sink.most_open == 3
    assert post.sink.commands.count("QUIT") == 3


async def test_a_kept_connection_that_died_is_replaced_at_once(post: Post) -> None:
    await post.send(ANN)
    post.sink.say("MAIL", DROP)
    await post.send(ANN)
    assert (len(post.sink.received), post.sink.connections) == (2, 2)

    post.sink.say("MAIL", "421 closing")
    await post.send(ANN)
    assert (len(post.sink.received), post.sink.connections) == (3, 3)


async def test_a_server_that_closes_every_connection_is_not_asked_for_ever(post: Post) -> None:
    await post.send(ANN)
    post.sink.say("MAIL", DROP, DROP, DROP)
    with pytest.raises(Retry):
        await post.send(ANN)
    assert post.sink.connections == 2


async def test_a_restarted_server_is_noticed(post: Post) -> None:
    await asyncio.gather(*(post.send(ANN) for _ in range(4)))
    post.sink.drop_all()
    await asyncio.gather(*(post.send(ANN) for _ in range(4)))
    assert len(post.sink.received) == 8


async def test_no_server_means_later(tmp_path: Path) -> None:
    with pytest.raises(Retry, match="no connection to the mail server"):
        await run_action(action, ANN, settings={"host": "127.0.0.1", "port": 1, "use_tls": False}, data_dir=tmp_path)


async def test_a_server_without_starttls_gets_nothing_in_the_clear(tmp_path: Path) -> None:
    async with post_office(tmp_path, use_tls=True, user="app", password="hunter2-hunter2") as post:
        with pytest.raises(Retry, match="STARTTLS"):
            await post.send(ANN)
    assert not any(command.startswith(("AUTH", "MAIL")) for command in post.sink.commands)


def certificate() -> ssl.SSLContext:
    folder = Path(__file__).parents[2] / "data" / "tls"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "localhost.pem", folder / "localhost.key")
    return context


async def test_starttls_comes_before_the_password_and_the_mail(tmp_path: Path) -> None:
    async with smtp_sink(certificate()) as sink:
        sink.extensions += ("AUTH PLAIN",)
        async with mailer(tmp_path, sink, verify=False, user="app", password="hunter2-hunter2") as resource:
            await run_action(action, ANN, resource=resource)
    verbs = [command.partition(" ")[0] for command in sink.commands]
    assert verbs == ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL", "RCPT", "DATA", "QUIT"]
    assert len(sink.received) == 1


async def test_tls_from_the_start_on_the_port_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with smtp_sink(certificate(), implicit=True) as sink:
        monkeypatch.setattr("appliance_send_email.connections.IMPLICIT_TLS_PORT", sink.port)
        async with mailer(tmp_path, sink, verify=False) as resource:
            await run_action(action, ANN, resource=resource)
    assert len(sink.received) == 1


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    async with smtp_sink(certificate()) as sink, mailer(tmp_path, sink) as resource:
        with pytest.raises(Retry, match="certificate"):
            await run_action(action, ANN, resource=resource)
    assert sink.received == []


async def test_a_wrong_password_is_trouble_that_may_pass(tmp_path: Path) -> None:
    async with post_office(tmp_path, user="app", password="hunter2-hunter2") as post:
        post.sink.extensions = ("AUTH PLAIN",)
        post.sink.script["AUTH"].append("535 wrong")
        with pytest.raises(Retry, match="535 wrong"):
            await post.send(ANN)
        await post.send(ANN)
    assert len(post.sink.received) == 1


async def test_without_a_server_mail_goes_into_files_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_resource(action, {}, data_dir=tmp_path) as resource:
        outcomes = [
            await run_action(action, {**ANN, "bcc": "bo@example.org"}, resource=resource, event=EVENT) for _ in range(2)
        ]

    files = [tmp_path / "outbox" / name for name in sorted(os.listdir(tmp_path / "outbox"))]
    assert [str(file) for file in files] == outcomes[0].output["outbox"] == outcomes[1].output["outbox"]
    assert {file.suffix for file in files} == {".eml"}
    assert len(files) == 2
    stamp = EVENT.time[:19].replace("-", "").replace(":", "")
    assert all(file.name.startswith(f"{stamp}-") for file in files)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    mails = [message_from_bytes(file.read_bytes(), policy=policy.default) for file in files]
    assert {mail["X-Envelope-To"] for mail in mails} == {"ann@example.org", "bo@example.org"}
    assert {mail["Message-ID"] for mail in mails} == set(outcomes[0].output["message_ids"])
    assert [record.levelno for record in caplog.records if "mail is written to" in record.message] == [logging.WARNING]


EVENT = new_event("form_submitted", {"name": "Ann <b>"}, source="tests")


async def test_a_huge_text_arrives_too(tmp_path: Path) -> None:
    outcome = await run_action(action, {**ANN, "body": "ü" * 60_000}, settings={}, data_dir=tmp_path)
    (file,) = (tmp_path / "outbox").iterdir()
    content = file.read_bytes()
    assert outcome.output["outbox"] == [str(file)]
    assert content.isascii()
    assert max(map(len, content.splitlines())) <= 998
    assert message_from_bytes(content, policy=policy.default).get_content() == "ü" * 60_000 + "\n"


async def test_an_outbox_that_can_not_be_written_means_later(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("in the way")
    with pytest.raises(Retry, match="can't be written"):
        await run_action(action, ANN, settings={}, data_dir=tmp_path)


def templates(folder: Path, **files: str) -> Path:
    (folder / "templates").mkdir()
    for name, text in files.items():
        (folder / "templates" / name.replace("_", ".")).write_text(text)
    return folder


async def sent_from_template(post: Post, params: dict[str, Any]) -> Any:
    await post.send({"to": "ann@example.org", "template": "thanks", **params}, event=EVENT)
    return post.sink.received[-1].message


async def test_a_template_gives_subject_text_and_escaped_html(post: Post, tmp_path: Path) -> None:
    templates(
        tmp_path,
        thanks_txt="Subject: Thanks,\t{{ event.data.name }}\n\nDear {{ event.data.name }}: {{ data.n }}\n",
        thanks_html="<p>{{ event.data.name }} {{ run.workflow }}</p>\n",
    )
    message = await sent_from_template(post, {"data": {"n": 3}})

    assert message["Subject"] == "Thanks, Ann <b>"
    assert message.get_body(("plain",)).get_content() == "Dear Ann <b>: 3\n"
    assert message.get_body(("html",)).get_content() == "<p>Ann &lt;b&gt; test</p>\n"
    assert (await sent_from_template(post, {"data": {"n": 3}, "subject": "Mine"}))["Subject"] == "Mine"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ data.missing }}", "missing"),
        ("{% if %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 / 0 }}", "division"),
        ("{% include 'gone.txt' %}", "gone.txt"),
        ("{% for a in range(90000) %}{{ 'x' * 90 }}{% endfor %}", "more than"),
        ("Subject: a{{ '\\x1b' }}b\n\n", "control characters"),
    ],
)
async def test_a_template_that_can_not_be_rendered_says_why(text: str, why: str, post: Post, tmp_path: Path) -> None:
    templates(tmp_path, thanks_txt=text)
    with pytest.raises(Reject, match=why):
        await sent_from_template(post, {})


async def test_a_missing_template_says_where_it_was_sought(post: Post) -> None:
    with pytest.raises(Reject, match=r"thanks\.txt or thanks\.html"):
        await sent_from_template(post, {})


def test_the_settings_are_the_cores(tmp_path: Path) -> None:
    from appliance.settings import SmtpSettings

    assert action.settings is not None
    core, own = SmtpSettings(), action.settings()
    assert {name: getattr(own, name) for name in type(own).model_fields} == {
        name: getattr(core, name) for name in type(core).model_fields
    }


LONG = "word " * 300


@pytest.mark.parametrize(
    ("subject", "body", "html"),
    [
        ("plain", "text\n", None),
        ("plain", None, "<p>only</p>\n"),
        ("=?utf-8?q?not_encoded?=", "text\n", "<p>x</p>\n"),
        ("Ü" * 400, LONG + "\n" + "ü" * 2000 + "\n", "<p>" + LONG + "</p>\n"),
        ("x" * 900, "trailing space \n\n\n.\n--\n=\n=_\n=3D\n\ttab\t\n", "<p>🎉</p>\n"),
        ("", "no end of line", None),
        ("漢字" * 50, "漢字" * 500 + "\r\nmixed\rends\n", None),
        ("a  b", "", ""),
        ("See https://example.com/" + "x" * 80 + " now", "x" * 999, "\r\n"),
    ],
    ids=["plain", "html", "looks encoded", "long", "awkward", "no subject", "CJK", "empty", "long words"],
)
async def test_what_is_composed_parses_back(subject: str, body: str | None, html: str | None, post: Post) -> None:
    written = 'Größe "Q" <a@example.com>' if html else 'J. "Q" Doe\\ <a@example.com>'
    texts = {name: text for name, text in {"body": body, "html": html}.items() if text is not None}
    await post.send({"to": [f"a{n}@example.org" for n in range(30)], "from": written, "subject": subject, **texts})

    mail = post.sink.received[0]
    message = mail.message
    assert message.defects == []
    assert mail.content.isascii()
    assert max(map(len, mail.content.splitlines())) <= 998
    assert message["Subject"] == subject
    assert [address.addr_spec for address in message["To"].addresses] == [f"a{n}@example.org" for n in range(30)]
    name = 'Größe "Q"' if html else 'J. "Q" Doe\\'
    assert [(a.display_name, a.addr_spec) for a in message["From"].addresses] == [(name, "a@example.com")]
    for kind, text in (("plain", body), ("html", html)):
        part = message.get_body((kind,))
        assert (part is None) == (text is None)
        if part is not None and text is not None:
            assert part.defects == []
            assert part.get_content().splitlines() == text.splitlines()
