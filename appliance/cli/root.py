"""The command tree; a command's module is imported when the command is looked at, so that ``version`` stays fast."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

import click

from appliance.cli.exits import Exit, Failure, code_of
from appliance.errors import ApplianceError, ConfigurationError

COMMANDS = {
    "run": "appliance.cli.run:run",
    "validate": "appliance.cli.validate:validate",
    "import": "appliance.cli.import_:import_",
    "export": "appliance.cli.export:export",
    "apply": "appliance.cli.apply:apply",
    "diff": "appliance.cli.diff:diff",
    "workflows": "appliance.cli.workflows:workflows",
    "submit": "appliance.cli.ingest:submit",
    "publish": "appliance.cli.ingest:publish",
    "start": "appliance.cli.start:start",
    "events": "appliance.cli.events:events",
    "runs": "appliance.cli.runs:runs",
    "tasks": "appliance.cli.tasks:tasks",
    "machines": "appliance.cli.machines:machines",
    "queue": "appliance.cli.queue:queue",
    "schedules": "appliance.cli.schedules:schedules",
    "sources": "appliance.cli.sources:sources",
    "dlq": "appliance.cli.dead_letters:dlq",
    "explain": "appliance.cli.explain:explain",
    "simulate": "appliance.cli.simulate:simulate",
    "trace": "appliance.cli.trace:trace",
    "recover": "appliance.cli.recover:recover",
    "ledger": "appliance.cli.ledger:ledger",
    "doctor": "appliance.cli.doctor:doctor",
    "schema": "appliance.cli.local:schema",
    "plugins": "appliance.cli.local:plugins",
    "migrate": "appliance.cli.local:migrate",
    "version": "appliance.cli.version:version",
}
"""Where each command lives, in the order in which ``appliance --help`` lists them."""


class LazyGroup(click.Group):
    """A group whose commands are imported one by one, when somebody asks for them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - a typo in COMMANDS, found by the tests
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(None, "--version", message="%(prog)s %(version)s", package_name="appliance")
@click.option("--traceback", "show_traceback", is_flag=True, help="Show where an error arose, for a bug report.")
def commands(show_traceback: bool) -> None:
    """Event-driven workflows on Redis Streams: events in, durable workflows run, nothing lost."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one line each on standard error."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        outcome = commands.main(args=argv, prog_name="appliance", standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else Exit.OK
    except click.UsageError as error:
        error.show()
        return Exit.USAGE
    except click.ClickException as error:
        _complain(error.format_message())
        return error.code if isinstance(error, Failure) else error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has had enough. Python would complain once more while flushing at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except ConfigurationError as error:
        for problem in error.problems:
            _complain(str(problem))
        return Exit.CONFIGURATION
    except ApplianceError as error:
        _complain(str(error))
        return code_of(error)
    except Exception as error:
        if "--traceback" in argv:
            traceback.print_exc()
        _complain(f"this is a bug in appliance {version('appliance')}: {type(error).__name__}: {error}")
        return Exit.FAILED


def _complain(message: str) -> None:
    line = " ".join(message.split())
    click.echo(f"error: {line}", err=True)
