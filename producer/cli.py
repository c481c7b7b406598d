"""The producer's commands as one application. `promptq.worker.cli` mounts its own beside them."""

import typer

from promptq.producer.commands import limits, tenants
from promptq.producer.commands.cancel import cancel
from promptq.producer.commands.enqueue import enqueue
from promptq.producer.commands.events import events
from promptq.producer.commands.failed import failed, requeue
from promptq.producer.commands.group import group
from promptq.producer.commands.result import result
from promptq.producer.commands.schema import schema
from promptq.producer.commands.status import status
from promptq.producer.console import EXIT_CODES, OneLineErrors

app = typer.Typer(
    cls=OneLineErrors,
    help="A durable prompt queue for the xAI API.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (enqueue, result, events, status, group, cancel, failed, requeue, limits.pause, limits.resume, schema):
    app.command(epilog=EXIT_CODES)(command)
for name, several in (("limits", limits.app), ("tenants", tenants.app)):
    app.add_typer(several, name=name)

if __name__ == "__main__":
    app(prog_name="promptq")
