"""`plumbline promote`, `rollback`, `history`, `delete`: which version serves, and who said so.

They need no Prefect server: an alias has to be moved back at night when nothing else is up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from plumbline.data_contracts.errors import CheckFailed, SignatureError, UsageError
from plumbline.flows.cli.arguments import HERE, Directory, Json, workspace_root
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.operations.promote_model import Override

Alias = Annotated[str, typer.Option(help="candidate, challenger, shadow or champion.")]
Why = Annotated[str, typer.Option(help="Why, in words; kept in the ledger.")]
OverrideName = Annotated[
    str | None, typer.Option("--override", help="Who answers for it where a gate says no; kept in the ledger.")
]
OverrideReason = Annotated[str, typer.Option(help="Why the gates are overridden.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (promote, rollback, history, delete):
        app.command()(command)


def override_of(name: str | None, reason: str) -> Override | None:
    """Who answers for it, from the two options. Raises `UsageError` for a reason without a name."""
    from plumbline.tasks.operations.promote_model import Override

    if name is None and reason:
        raise UsageError("--override-reason: expected --override NAME beside it, who answers for it.")
    return None if name is None else Override(name, reason)


def promote(
    model: Annotated[
        str | None, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION or NAME; the candidate by default.")
    ] = None,
    alias: Alias = "champion",
    reason: Annotated[
        str, typer.Option(help="Why, in words; kept in the ledger. With --override, its reason is taken by default.")
    ] = "",
    override: OverrideName = None,
    override_reason: OverrideReason = "",
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Give an alias to a version that passes every gate before it, verified first and on record."""
    from plumbline.flows.graph.promotion_report import promotion_payload, promotion_view, refusal
    from plumbline.tasks.operations import promote_model as verb
    from plumbline.tasks.params.document import load_params

    named = override_of(override, override_reason)
    root, output = workspace_root(workspace), Output(json)
    params, _ = load_params(root)
    with output.working("verifying, comparing with the champion and timing answers"):
        why = reason or override_reason or "asked for on the command line"
        promotion = verb.promote(root, params, model, alias, reason=why, override=named)
    output.result(promotion_payload(promotion), lambda: promotion_view(promotion))
    if not promotion.promoted:
        raise CheckFailed(refusal(promotion))


def rollback(
    reason: Why,
    to: Annotated[str | None, typer.Option(help="The version to return to; `previous` by default.")] = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Give champion back to an earlier champion, verified first: no gates, no training, seconds.

    A version that never was champion passes every gate of `promote` first.
    """
    from plumbline.flows.graph.promotion_report import promotion_payload, promotion_view, refusal
    from plumbline.tasks.operations import promote_model as verb
    from plumbline.tasks.params.document import load_params

    root, output = workspace_root(workspace), Output(json)
    params, _ = load_params(root)
    with output.working("verifying the version to return to"):
        returned = verb.rollback(root, params, reason=reason, to=to)
    output.result(promotion_payload(returned), lambda: promotion_view(returned))
    if not returned.promoted:
        raise CheckFailed(refusal(returned))


def history(
    alias: Annotated[str | None, typer.Option(help="Show the lines of this alias alone.")] = None,
    anchor: Annotated[
        bool, typer.Option("--anchor", help="Write the signed head anew, on record, where MLflow lost it.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why the head is written anew; kept in the ledger.")] = "",
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Show the promotion ledger and verify its chain: who moved which alias, when, why, on what evidence."""
    from plumbline.flows.graph.promotion_report import history_payload, history_view
    from plumbline.tasks.operations import promote_model as verb
    from plumbline.tasks.params.document import load_params

    root, output = workspace_root(workspace), Output(json)
    params, _ = load_params(root)
    if anchor:
        verb.anchor_history(root, params, reason=reason)
    found = verb.promotion_history(root, params, alias)
    output.result(history_payload(found), lambda: history_view(found))
    if found.problems:
        raise SignatureError(
            f"the promotion ledger is not whole: {' '.join(found.problems)} "
            f"`plumbline restore-workspace BACKUP DIR` brings back a backup."
        )
    if found.moved_outside:
        raise CheckFailed(
            f"moved outside the ledger: {', '.join(found.moved_outside)}. `plumbline rollback --to MODEL` settles it."
        )


def delete(
    model: Annotated[str, typer.Argument(help="MODEL/VERSION or models:/MODEL/VERSION, never an alias.")],
    reason: Why,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Delete a registered version that no alias holds, on record."""
    from plumbline.flows.graph.promotion_report import entry_payload
    from plumbline.tasks.operations import promote_model as verb
    from plumbline.tasks.params.document import load_params

    root, output = workspace_root(workspace), Output(json)
    params, _ = load_params(root)
    entry = verb.delete_version(root, params, model, reason=reason)
    output.result({"deleted": entry_payload(entry)}, f"deleted models:/{entry.model}/{entry.version}: {entry.title}")
