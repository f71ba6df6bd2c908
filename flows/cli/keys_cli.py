"""`plumbline keys`: the keys that sign versions and the ledger, and those that verify them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plumbline.flows.cli.arguments import HERE, Directory, Json, workspace_root
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.params.whole import Params
    from plumbline.tasks.registry.signing.trust import Statement

_keys = typer.Typer(no_args_is_help=True, help="Keys that sign versions and the ledger, and those that verify them.")
Reason = Annotated[str, typer.Option(help="Why; it is kept with your name and the time.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(_keys, name="keys")


@_keys.command("list")
def keys_list(workspace: Directory = HERE, json: Json = False) -> None:
    """Show every key that this workspace trusts or trusted, and the keys that this user pinned."""
    from rich.markup import escape
    from rich.table import Column, Table

    from plumbline.tasks.registry.manage_keys import list_keys
    from plumbline.tasks.registry.signing.keys import pinned

    root = workspace_root(workspace)
    rows, pins = list_keys(root, _params(root).registry), [key.fingerprint for key in pinned()]
    table = Table(Column("key", no_wrap=True, min_width=16), "", "private half", "since, by, why", box=None)
    for row in rows:
        here = "here" if row.here else "elsewhere"
        standing = f"{row.standing}, pinned" if row.fingerprint in pins else row.standing
        facts = escape(", ".join(filter(None, (row.at, row.by, row.reason))))
        table.add_row(row.fingerprint[:16], standing, here, facts)
    Output(json).result({"keys": [asdict(row) for row in rows], "pinned": pins}, table)


@_keys.command("rotate")
def keys_rotate(reason: Reason, workspace: Directory = HERE, json: Json = False) -> None:
    """Make a new key that signs from now on. What the old one signed stays good until it is revoked."""
    from plumbline.tasks.registry.manage_keys import rotate_key

    root, by = _root_and_actor(workspace)
    _tell(rotate_key(root, _params(root), by=by, reason=reason), "signs from now on", Output(json))


@_keys.command("add")
def keys_add(
    file: Annotated[Path, typer.Argument(help="The public key, as PEM.")],
    reason: Reason,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Let the owner of another key sign for this workspace too: another machine, a hardware token."""
    from plumbline.tasks.registry.manage_keys import add_key

    root, by = _root_and_actor(workspace)
    _tell(add_key(root, _params(root), file, by=by, reason=reason), "may sign too", Output(json))


@_keys.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="Its fingerprint, or the first eight or more characters.")],
    reason: Reason,
    everything: Annotated[
        bool,
        typer.Option("--everything", help="Also the versions that it has signed, as when it was stolen."),
    ] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Accept nothing more from a key. Versions that it has signed stay good, unless --everything is given."""
    from plumbline.tasks.registry.manage_keys import revoke_key

    root, by = _root_and_actor(workspace)
    done = revoke_key(root, _params(root), key, everything=everything, by=by, reason=reason)
    kept = "the versions that it signed are not" if everything else "what it signed up to now stays"
    _tell(done, f"is revoked; {kept} good", Output(json))


@_keys.command("export")
def keys_export(workspace: Directory = HERE) -> None:
    """Print the workspace's first public key, as PEM, for those who verify elsewhere (`plumbline keys trust`)."""
    from plumbline.tasks.registry.manage_keys import public_keys

    root = workspace_root(workspace)
    Output(False).raw(public_keys(root, _params(root).registry))


@_keys.command("trust")
def keys_trust(
    file: Annotated[Path, typer.Argument(help="A public key, as PEM, that came from those who sign.")],
    json: Json = False,
) -> None:
    """Pin a public key for this user: workspaces are then believed only as far as a pinned key vouches for them."""
    from plumbline.tasks.registry.signing.keys import pin

    key = pin(file)
    Output(json).result({"fingerprint": key.fingerprint}, f"Key {key.fingerprint[:16]} is pinned.")


def _tell(statement: Statement, what: str, output: Output) -> None:
    facts = {"action": statement.action, "fingerprint": statement.fingerprint, "at": statement.at, "by": statement.by}
    payload = {**facts, "reason": statement.reason, "kept": len(statement.kept)}
    output.result(payload, f"Key {statement.fingerprint[:16]} {what}.")


def _root_and_actor(workspace: Path) -> tuple[Path, str]:
    from plumbline.tasks.operations.promote_model import current_actor

    root = workspace_root(workspace)
    return root, current_actor(root)


def _params(root: Path) -> Params:
    from plumbline.tasks.params.document import load_params

    return load_params(root)[0]
