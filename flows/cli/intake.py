"""`plumbline inbox`, `intake`, `outbox`: fresh feedback on its way to a run."""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from plumbline.flows.cli import completion
from plumbline.flows.cli.arguments import HERE, Directory, Json, loaded, workspace_root
from plumbline.flows.cli.ending import until_ended
from plumbline.flows.cli.feedback import require_source
from plumbline.flows.cli.output import Output

app = typer.Typer()
_inbox = typer.Typer(no_args_is_help=True, help="Take files that are dropped into a folder.")
_intake = typer.Typer(no_args_is_help=True, help="Take feedback over HTTP; make and revoke tokens.")
_outbox = typer.Typer(no_args_is_help=True, help="Show and send the events that start runs.")
app.add_typer(_inbox, name="inbox")
app.add_typer(_intake, name="intake")
app.add_typer(_outbox, name="outbox")


@_inbox.command("watch", epilog="Example: plumbline inbox watch")
def inbox_watch(workspace: Directory = HERE, json: Json = False) -> None:
    """Take files from <inbox>/<source>/ as they come, until interrupted."""
    from plumbline.flows.deployment.servers import server_url, told_server
    from plumbline.tasks.operations.watch_inbox import watch_inbox

    root, params = loaded(workspace)
    output = Output(json)
    output.remark(f"watching {root / params.intake.inbox}")
    output.remark(f"events go to: {told_server(root) or 'no Prefect server; they wait in the outbox'}")
    with until_ended():
        watch_inbox(root, params, output.remark, server=server_url())


@_inbox.command("scan", epilog="Example: plumbline inbox scan --json")
def inbox_scan(workspace: Directory = HERE, json: Json = False) -> None:
    """Take the files that are whole now, and end."""
    from plumbline.flows.deployment.servers import server_url
    from plumbline.tasks.operations.watch_inbox import scan_inbox

    root, params = loaded(workspace)
    output = Output(json)
    handled = scan_inbox(root, params, output.remark, server_url())
    table = Table("file", "source", "outcome", "", box=None)
    for item in handled:
        table.add_row(escape(repr(item.name)), escape(item.source), item.outcome, escape(item.detail))
    output.result({"handled": [asdict(item) for item in handled]}, table)


@_intake.command("serve", epilog="Example: plumbline intake serve")
def intake_serve(workspace: Directory = HERE, json: Json = False) -> None:
    """Answer POST /v1/feedback/{source} on intake.host and intake.port, until ended."""
    from plumbline.flows.deployment.servers import server_url
    from plumbline.tasks.operations.serve_intake import serve

    root, params = loaded(workspace)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("plumbline.intake").setLevel(logging.INFO)
    Output(json).remark(f"taking feedback on http://{params.intake.host}:{params.intake.port}/v1/feedback/SOURCE")
    with until_ended():
        serve(root, params, server_url())


@_intake.command("token", epilog="Example: plumbline intake token crowd-a --source human_pairs")
def intake_token(
    name: Annotated[str, typer.Argument(help="Who sends with it; it stands in log lines.")],
    source: Annotated[
        list[str] | None,
        typer.Option(help="Only this kind of feedback. Repeatable.", autocompletion=completion.sources),
    ] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Forget the token of this name instead.")] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Make a bearer token and print it once; its hash alone is kept, in a file of mode 0600."""
    from plumbline.tasks.operations.intake.tokens import create_token, revoke_token, token_file

    path = token_file(workspace_root(workspace))
    for item in source or []:
        require_source(item)
    if revoke:
        revoke_token(path, name)
        Output(json).result({"name": name, "revoked": True}, f"Token {name} is revoked.")
        return
    token = create_token(path, name, source or [])
    Output(json).result({"name": name, "sources": source or [], "token": token}, token)


@_outbox.command("list", epilog="Example: plumbline outbox list")
def outbox_list(workspace: Directory = HERE, json: Json = False) -> None:
    """List every batch and finding: sent or pending, and the run that it had."""
    from plumbline.tasks.operations.announce import read_outbox
    from plumbline.tasks.operations.freshness.outbox import entry_states

    root, params = loaded(workspace)
    table, rows = Table("key", "event", "state", "attempts", "note", box=None), []
    for item in entry_states(read_outbox(root, params)):
        told = item.entry.emitted_at.isoformat(timespec="seconds") if item.entry.emitted_at else "pending"
        table.add_row(escape(item.entry.key), told, item.state, str(item.attempts), escape(item.note or ""))
        rows.append(
            {
                "key": item.entry.key,
                "kind": item.entry.kind,
                "subject": item.entry.subject,
                "event_id": item.entry.event_id,
                "created_at": item.entry.created_at,
                "emitted_at": item.entry.emitted_at,
                "state": item.state,
                "attempts": item.attempts,
                "run_key": item.run_key,
                "note": item.note,
            }
        )
    Output(json).result({"entries": rows}, table)


@_outbox.command("drain", epilog="Example: plumbline outbox drain")
def outbox_drain(workspace: Directory = HERE, json: Json = False) -> None:
    """Send every event that the server has not confirmed; batches without a row are entered first."""
    from plumbline.flows.deployment.servers import server_url, told_server
    from plumbline.tasks.operations.announce import drain_outbox, open_outbox
    from plumbline.tasks.operations.freshness.outbox import pending

    root, params = loaded(workspace)
    told, server = drain_outbox(root, params, server_url()), told_server(root)
    left = pending(open_outbox(root, params))
    Output(json).result(
        {
            "emitted": [entry.key for entry in told],
            "pending": [entry.key for entry in left],
            "server": None if server is None else server.told,
        },
        f"Prefect server: {server or 'none'}. Told: {', '.join(entry.key for entry in told) or 'nothing'}. "
        f"Pending: {len(left)}.",
    )
