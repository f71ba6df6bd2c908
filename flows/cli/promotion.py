"""`plumbline promote`, `rollback`, `history`, `delete`: which version serves, and who decided it.

They need no Prefect server: an alias has to be moved back at night when nothing else is up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from plumbline.data_contracts.errors import CheckFailed, SignatureError, UsageError
from plumbline.flows.cli import completion
from plumbline.flows.cli.arguments import HERE, Directory, Json, loaded
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.operations.promote_model import Override

Alias = Annotated[
    str, typer.Option(help="candidate, challenger, shadow or champion.", autocompletion=completion.aliases)
]
Reason = Annotated[str, typer.Option(help="Why, in words; kept in the ledger.")]
OverrideName = Annotated[
    str | None, typer.Option("--override", help="Who answers for it where a gate says no; kept in the ledger.")
]
OverrideReason = Annotated[str, typer.Option(help="Why the gates are overridden.")]


app = typer.Typer()


def override_of(name: str | None, reason: str) -> Override | None:
    """The override that the two options name. Raises `UsageError` for a reason without a name."""
    from plumbline.tasks.operations.promote_model import Override

    if name is None and reason:
        raise UsageError("--override-reason: expected --override NAME beside it, who answers for it.")
    return None if name is None else Override(name, reason)


@app.command(epilog='Example: plumbline promote assistant/2 --reason "better refusals"')
def promote(
    model: Annotated[
        str | None,
        typer.Argument(
            help="models:/NAME@ALIAS, models:/NAME/VERSION or NAME; the candidate by default.",
            autocompletion=completion.models,
        ),
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
    """Give an alias to a version that passes its gates.

    Its signature is verified first. The move is on record.
    """
    from plumbline.flows.graph.promotion_report import promotion_payload, promotion_view, refusal
    from plumbline.tasks.operations import promote_model as verb

    named = override_of(override, override_reason)
    root, params = loaded(workspace)
    output = Output(json)
    with output.working("verifying, comparing with the champion and timing answers"):
        why = reason or override_reason or "asked for on the command line"
        promotion = verb.promote(root, params, model, alias, reason=why, override=named)
    output.result(promotion_payload(promotion), lambda: promotion_view(promotion))
    if not promotion.promoted:
        raise CheckFailed(refusal(promotion))


@app.command(epilog="Example: plumbline rollback --reason complaints")
def rollback(
    reason: Reason,
    to: Annotated[str | None, typer.Option(help="The version to return to; `previous` by default.")] = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Give champion back to an earlier champion, in seconds.

    Its signature is verified first. A version that never was champion passes the gates of `promote` too.
    """
    from plumbline.flows.graph.promotion_report import promotion_payload, promotion_view, refusal
    from plumbline.tasks.operations import promote_model as verb

    root, params = loaded(workspace)
    output = Output(json)
    with output.working("verifying the version to return to"):
        returned = verb.rollback(root, params, reason=reason, to=to)
    output.result(promotion_payload(returned), lambda: promotion_view(returned))
    if not returned.promoted:
        raise CheckFailed(refusal(returned))


@app.command(epilog="Example: plumbline history --alias champion")
def history(
    alias: Annotated[
        str | None, typer.Option(help="Show the lines of this alias alone.", autocompletion=completion.aliases)
    ] = None,
    anchor: Annotated[
        bool, typer.Option("--anchor", help="Write the signed head anew, on record, where MLflow lost it.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why the head is written anew; kept in the ledger.")] = "",
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Show and verify the ledger: who moved which alias, why.

    Exit code 1 when the chain is broken or an alias was moved outside the ledger.
    """
    from plumbline.flows.graph.promotion_report import history_payload, history_view
    from plumbline.tasks.operations import promote_model as verb

    root, params = loaded(workspace)
    output = Output(json)
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


@app.command(epilog="Example: plumbline delete assistant/1 --reason superseded")
def delete(
    model: Annotated[str, typer.Argument(help="MODEL/VERSION or models:/MODEL/VERSION, never an alias.")],
    reason: Reason,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Delete a registered version that no alias holds.

    The deletion is on record.
    """
    from plumbline.flows.graph.promotion_report import entry_payload
    from plumbline.tasks.operations import promote_model as verb

    root, params = loaded(workspace)
    output = Output(json)
    entry = verb.delete_version(root, params, model, reason=reason)
    output.result({"deleted": entry_payload(entry)}, f"deleted models:/{entry.model}/{entry.version}: {entry.title}")
