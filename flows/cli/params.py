"""`plumbline params`: read, explain and set params."""

from __future__ import annotations

import difflib
import json as json_module
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from plumbline.data_contracts.errors import UsageError
from plumbline.data_contracts.secrets import mask
from plumbline.flows.cli import completion
from plumbline.flows.cli.arguments import HERE, Directory, Json, Trial, TrialOverlays, workspace_root
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.params.describe import Param

_SHOW = "show"


class _ShowsByDefault(TyperGroup):
    """`plumbline params KEY` shows, as `plumbline params show KEY` does."""

    default_command = _SHOW

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` before arguments that begin with no command's name."""
        first = next((arg for arg in args if not arg.startswith("-")), None)
        if first not in self.commands and "--help" not in args:
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)


app = typer.Typer()
group = typer.Typer(
    cls=_ShowsByDefault, help="Show, explain and set params.", epilog="Example: plumbline params finetune.dpo.beta"
)
app.add_typer(group, name="params")


@group.command(_SHOW, epilog="Example: plumbline params show finetune.dpo.beta")
def show(
    key: Annotated[
        str | None,
        typer.Argument(help="A dotted key, a section, or the end of a key.", autocompletion=completion.param_keys),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Print every param, as a file with comments.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what differs from the defaults.")] = False,
    params: TrialOverlays = None,
    settings: Trial = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Show what was chosen, or a key: value, default, where it comes from, range and description."""
    from plumbline.tasks.params.describe import DEFAULT, described, render_params
    from plumbline.tasks.params.layers import load_layers, resolve_overlays

    root, output = workspace_root(workspace, use_services=False), Output(json)
    layers = load_layers(root, resolve_overlays(root, params or []), (), settings or [])
    read = layers.validate()
    rows = described(layers, read)
    if key is not None:
        rows = _named(rows, key)
    elif diff:
        rows = [row for row in rows if row.chosen]
    elif every and not json:
        output.raw(render_params(read).encode())
        return
    elif not every:
        rows = [row for row in rows if row.place != DEFAULT]
    rows = [replace(row, place=row.place.removeprefix(f"{root}/")) for row in rows]
    output.result(
        {"params": [asdict(row) for row in rows]},
        lambda: _explained(rows[0]) if key and len(rows) == 1 else _table(rows, key is None),
    )


@group.command("set", epilog="Example: plumbline params set finetune.methods=[dpo] reference.base=my/model")
def set_(
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", autocompletion=completion.settings, help="What to keep.")
    ],
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Write values to params.yaml, where they stay. Nothing is written if one of them is refused."""
    from plumbline.tasks.params.document import save_params
    from plumbline.tasks.params.layers import load_params

    root = workspace_root(workspace, use_services=False)
    _say(save_params(root, load_params(root, (), settings)[1]), Output(json))


@group.command(epilog="Example: plumbline params unset finetune.dpo.beta")
def unset(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", autocompletion=completion.param_keys, help="Keys.")],
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Remove keys from params.yaml: the recipe's values or the defaults hold again.

    Nothing is written if what is left is refused.
    """
    from plumbline.tasks.params.document import save_params, without
    from plumbline.tasks.params.layers import layers_with, load_layers
    from plumbline.tasks.params.section import PARAMS_FILE

    root = workspace_root(workspace, use_services=False)
    document = load_layers(root).document
    for key in keys:
        if not without(document, key):
            raise UsageError(
                f"{key}: expected a key of {root / PARAMS_FILE}, found none there. `plumbline params` lists them."
            )
    layers_with(root, document).validate()
    _say(save_params(root, document), Output(json))


def _say(changed: list[str], output: Output) -> None:
    output.result({"changed": changed}, "\n".join(changed) or "Nothing changed: the values were these already.")


def _named(rows: list[Param], key: str) -> list[Param]:
    """The params of a key: it itself, those of a section, or those whose key ends in it. Raises `UsageError`."""
    found = [row for row in rows if row.key == key or row.key.startswith(f"{key}.")]
    found = found or [row for row in rows if f".{row.key}.".endswith(f".{key}.")]
    found = found or [row for row in rows if f".{key}." in f".{row.key}."]
    if found:
        return found
    near = difflib.get_close_matches(key, [*(row.key for row in rows), *(row.key.split(".")[-1] for row in rows)], n=3)
    hint = f"Did you mean {' or '.join(dict.fromkeys(near))}?" if near else "`plumbline params --all` lists them."
    raise UsageError(f"{key}: unknown key of params. {hint}")


def _explained(row: Param) -> Table:
    table = Table(row.key, _text(row.value), box=None)
    table.add_row("default", _text(row.default))
    table.add_row("from", escape(row.place))
    if row.allowed:
        table.add_row("allowed", escape(row.allowed))
    table.add_row("", escape(row.description))
    return table


def _table(rows: list[Param], whole: bool) -> Table | str:
    if not rows:
        return "Every param has its default. `plumbline params --all` prints them, `plumbline params KEY` explains one."
    table = Table("param", "value", "default", "from", box=None)
    for row in rows:
        table.add_row(row.key, _text(row.value), _text(row.default), escape(row.place))
    if whole:
        table.caption = "`plumbline params KEY` explains one, `--all` prints every param."
    return table


def _text(value: Any) -> str:
    return escape(mask(value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False)))
