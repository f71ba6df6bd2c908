"""`plumbline keys`: the keys that sign versions and the ledger, and those that verify them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from plumbline.flows.cli.arguments import HERE, Directory, Json, Why, loaded
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.params.whole import Params
    from plumbline.tasks.registry.signing.trust import Statement

app = typer.Typer(name="keys", no_args_is_help=True, help="Manage the keys that sign versions and the ledger.")


@app.command("list", epilog="Example: plumbline keys list")
def keys_list(workspace: Directory = HERE, json: Json = False) -> None:
    """List the keys that this workspace trusts or trusted, and those that this user pinned."""
    from plumbline.tasks.registry.manage_keys import list_keys
    from plumbline.tasks.registry.signing.keys import pinned

    root, params = loaded(workspace)
    rows, pins = list_keys(root, params.registry), [key.fingerprint for key in pinned()]
    table = Table(Column("key", no_wrap=True, min_width=16), "", "private half", "since, by, why", box=None)
    for row in rows:
        here = "here" if row.here else "elsewhere"
        standing = f"{row.standing}, pinned" if row.fingerprint in pins else row.standing
        facts = escape(", ".join(filter(None, (row.at, row.by, row.reason))))
        table.add_row(row.fingerprint[:16], standing, here, facts)
    Output(json).result({"keys": [asdict(row) for row in rows], "pinned": pins}, table)


@app.command("rotate", epilog="Example: plumbline keys rotate --reason yearly")
def keys_rotate(reason: Why, workspace: Directory = HERE, json: Json = False) -> None:
    """Make a new key that signs from now on.

    What the old one signed stays good until it is revoked.
    """
    from plumbline.tasks.registry.manage_keys import rotate_key

    root, params, by = _opened(workspace)
    _tell(rotate_key(root, params, by=by, reason=reason), "signs from now on", Output(json))


@app.command("add", epilog='Example: plumbline keys add release.pub --reason "the release machine"')
def keys_add(
    file: Annotated[Path, typer.Argument(help="The public key, as PEM.")],
    reason: Why,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Let the owner of another key sign for this workspace too."""
    from plumbline.tasks.registry.manage_keys import add_key

    root, params, by = _opened(workspace)
    _tell(add_key(root, params, file, by=by, reason=reason), "may sign too", Output(json))


@app.command("revoke", epilog="Example: plumbline keys revoke 4f1c09ab --reason lost")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="Its fingerprint, or the first eight or more characters.")],
    reason: Why,
    everything: Annotated[
        bool,
        typer.Option("--everything", help="Also the versions that it has signed, as when it was stolen."),
    ] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Accept nothing more from a key.

    Versions that it has signed stay good, unless --everything is given.
    """
    from plumbline.tasks.registry.manage_keys import revoke_key

    root, params, by = _opened(workspace)
    done = revoke_key(root, params, key, everything=everything, by=by, reason=reason)
    kept = "the versions that it signed are not" if everything else "what it signed up to now stays"
    _tell(done, f"is revoked; {kept} good", Output(json))


@app.command("export", epilog="Example: plumbline keys export")
def keys_export(workspace: Directory = HERE) -> None:
    """Print the workspace's first public key, as PEM.

    Who verifies elsewhere pins it there with `plumbline keys trust`.
    """
    from plumbline.tasks.registry.manage_keys import public_keys

    root, params = loaded(workspace)
    Output(False).raw(public_keys(root, params.registry))


@app.command("trust", epilog="Example: plumbline keys trust assistant.pub")
def keys_trust(
    file: Annotated[Path, typer.Argument(help="A public key, as PEM, that came from those who sign.")],
    json: Json = False,
) -> None:
    """Pin a public key for this user.

    A workspace is then trusted only if a pinned key signed its keys.
    """
    from plumbline.tasks.registry.signing.keys import pin

    key = pin(file)
    Output(json).result({"fingerprint": key.fingerprint}, f"Key {key.fingerprint[:16]} is pinned.")


def _opened(workspace: Path) -> tuple[Path, Params, str]:
    """The workspace, its params, and the name of who changes its keys."""
    from plumbline.tasks.operations.promote_model import current_actor

    root, params = loaded(workspace)
    return root, params, current_actor(root)


def _tell(statement: Statement, what: str, output: Output) -> None:
    facts = {"action": statement.action, "fingerprint": statement.fingerprint, "at": statement.at, "by": statement.by}
    payload = {**facts, "reason": statement.reason, "kept": len(statement.kept)}
    output.result(payload, f"Key {statement.fingerprint[:16]} {what}.")
