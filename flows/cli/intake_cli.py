"""`plumbline inbox`, `intake`, `outbox`: fresh feedback on its way to a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plumbline.flows.cli.arguments import HERE, Directory, Json, workspace_root
from plumbline.flows.cli.ending import until_ended
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.params.whole import Params

_inbox = typer.Typer(no_args_is_help=True, help="Files that are dropped into a folder.")
_intake = typer.Typer(no_args_is_help=True, help="Feedback over HTTP.")
_outbox = typer.Typer(no_args_is_help=True, help="What is told to the Prefect server, and what came of it.")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(_inbox, name="inbox")
    app.add_typer(_intake, name="intake")
    app.add_typer(_outbox, name="outbox")


@_inbox.command("watch")
def inbox_watch(workspace: Directory = HERE, json: Json = False) -> None:
    """Take files from <inbox>/<source>/ as they come, until interrupted."""
    from plumbline.flows.deployment.servers import told_server
    from plumbline.tasks.operations.watch_inbox import watch_inbox

    root = workspace_root(workspace)
    params, output = _params(root), Output(json)
    output.remark(f"watching {root / params.intake.inbox}")
    output.remark(f"events go to: {told_server(root) or 'no Prefect server; they wait in the outbox'}")
    with until_ended():
        watch_inbox(root, params, output.remark)


@_inbox.command("scan")
def inbox_scan(workspace: Directory = HERE, json: Json = False) -> None:
    """Take the files that are whole now, and end."""
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from plumbline.tasks.operations.watch_inbox import scan_inbox

    root, output = workspace_root(workspace), Output(json)
    handled = scan_inbox(root, _params(root), output.remark)
    table = Table("file", "source", "outcome", "", box=None)
    for item in handled:
        table.add_row(escape(repr(item.name)), escape(item.source), item.outcome, escape(item.detail))
    output.result({"handled": [asdict(item) for item in handled]}, table)


@_intake.command("serve")
def intake_serve(workspace: Directory = HERE, json: Json = False) -> None:
    """Answer POST /v1/feedback/{source} on intake.host and intake.port, until ended."""
    import logging
    import sys

    from plumbline.tasks.operations.serve_intake import serve

    root = workspace_root(workspace)
    params = _params(root)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("plumbline.intake").setLevel(logging.INFO)
    Output(json).remark(f"taking feedback on http://{params.intake.host}:{params.intake.port}/v1/feedback/SOURCE")
    with until_ended():
        serve(root, params)


@_intake.command("token")
def intake_token(
    name: Annotated[str, typer.Argument(help="Who sends with it; it stands in log lines.")],
    source: Annotated[list[str] | None, typer.Option(help="Only this kind of feedback. Repeatable.")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Forget the token of this name instead.")] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Make a bearer token and print it once; its hash alone is kept, in a file of mode 0600."""
    from plumbline.data_contracts.errors import UsageError
    from plumbline.tasks.data.feedback import SOURCES
    from plumbline.tasks.operations.intake.tokens import create_token, revoke_token, token_file

    path = token_file(workspace_root(workspace))
    unknown = [item for item in source or [] if item not in SOURCES]
    if unknown:
        raise UsageError(f"{unknown[0]}: unknown source of feedback; expected one of {', '.join(SOURCES)}.")
    if revoke:
        revoke_token(path, name)
        Output(json).result({"name": name, "revoked": True}, f"Token {name} is revoked.")
        return
    token = create_token(path, name, source or [])
    Output(json).result({"name": name, "sources": source or [], "token": token}, token)


@_outbox.command("list")
def outbox_list(workspace: Directory = HERE, json: Json = False) -> None:
    """Every batch and finding: told or pending, and which run it had."""
    from rich.markup import escape
    from rich.table import Table

    from plumbline.tasks.operations.announce import read_outbox
    from plumbline.tasks.operations.freshness.outbox import standings

    root = workspace_root(workspace)
    table, rows = Table("key", "event", "state", "attempts", "note", box=None), []
    for item in standings(read_outbox(root, _params(root))):
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


@_outbox.command("drain")
def outbox_drain(workspace: Directory = HERE, json: Json = False) -> None:
    """Send every event that the server has not confirmed; batches without a row are entered first."""
    from plumbline.flows.deployment.servers import told_server
    from plumbline.tasks.operations.announce import drain_outbox, open_outbox
    from plumbline.tasks.operations.freshness.outbox import pending

    root = workspace_root(workspace)
    params = _params(root)
    told, server = drain_outbox(root, params), told_server(root)
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


def _params(root: Path) -> Params:
    from plumbline.tasks.params.document import load_params

    return load_params(root)[0]
