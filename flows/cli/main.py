"""The command line. Exit codes: 0 done, 1 a gate or check said no, 2 wrong usage or params, 3 a stage failed."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import Any

import typer
from typer.core import TyperGroup

from plumbline.flows.cli import (
    audit,
    backup,
    clinic,
    deployments,
    erase,
    export,
    feedback,
    intake,
    keys,
    monitoring,
    params,
    promotion,
    services,
    serving,
    training,
    workspace,
)
from plumbline.flows.cli.account import settle_account
from plumbline.flows.cli.ending import exit_code_of
from plumbline.flows.graph import environment

AREAS = {
    "Start": (workspace, params),
    "Feedback": (feedback, clinic, erase, export, intake),
    "Train": (training,),
    "Promote": (promotion, keys),
    "Serve": (serving, monitoring),
    "Operate": (services, deployments, backup),
    "Audit": (audit,),
}
"""Title of the help -> the modules with its commands, in the order of a user's day."""


class AreasHelp(TyperGroup):
    """Help that fits a screen: each command on one line, below the title of its area."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage and purpose without blank lines between: each command takes a line of the screen."""
        self.format_usage(ctx, formatter)
        with formatter.indentation():
            formatter.write_text(self.help)
        self.format_options(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands by area, then the names of the options."""
        width = max(map(len, self.commands))
        for title, commands in groupby(self.commands.items(), key=lambda item: vars(item[1])["rich_help_panel"]):
            formatter.write_heading(title)
            with formatter.indentation():
                limit = formatter.width - formatter.current_indent - width - 2
                formatter.write_dl([(name.ljust(width), each.get_short_help_str(limit)) for name, each in commands])
        formatter.write_heading("Options")
        with formatter.indentation():
            formatter.write_text(", ".join(option.opts[0] for option in self.get_params(ctx)))


app = typer.Typer(
    name="plumbline",
    cls=AreasHelp,
    help="Raw human feedback in, an aligned and audited language model out.",
    no_args_is_help=True,
    context_settings={"max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for title, modules in AREAS.items():
    for module in modules:
        for info in (*module.app.registered_commands, *module.app.registered_groups):
            info.rich_help_panel = title
        app.add_typer(module.app, rich_help_panel=title)


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    sys.exit(exit_code_of(_command))


def _command() -> None:
    settle_account()
    environment.prepare()
    app(prog_name="plumbline")


if __name__ == "__main__":
    main()
