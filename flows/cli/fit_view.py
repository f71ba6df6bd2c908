"""Show a person how feedback and a model fit a run: `plumbline validate FILE --base MODEL`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text


def fit_view(fit: Mapping[str, Any]) -> RenderableType:
    """The splits, the needs that are not met, then minutes and disk."""
    model = fit["model"]
    head = (
        f"\nModel:   {model['base']}, {model['parameters']:,} parameters, a context of {model['context_length']} tokens"
    )
    top, cost = Text("\n".join([head, *_lengths(fit)])), Text("\n".join(_cost(fit)))
    return Group(top, _splits(fit["splits"]), _needs(fit["needs"]), cost)


def _lengths(fit: Mapping[str, Any]) -> Iterator[str]:
    assumed = fit["assumed_completion_length"]
    if assumed is not None:
        yield (
            f"Lengths: up to {assumed} tokens a completion, the most that stage lengths may find where params leave it "
            f"open; π_ref's own completions may need less. training.max_completion_length sets it."
        )


def stopping(fit: Mapping[str, Any]) -> list[str]:
    """The needs without which a run stops or its gate cannot pass, a line each."""
    return [f"{need['key']}: {need['text']}" for need in fit["needs"] if need["stops"]]


def _splits(splits: Mapping[str, Any]) -> Table:
    table = Table("split", "pairs", "prompts", "refused", "tokens (median, 95 %, most)", "too long for", box=None)
    for column in table.columns[1:4]:
        column.justify = "right"
    for name, split in splits.items():
        tokens = split["tokens"]
        too_long = {**split["pairs_too_long"], **{f"{key} prompts": n for key, n in split["prompts_too_long"].items()}}
        aside = ", ".join(f"{key} {count}" for key, count in too_long.items() if count)
        lengths = f"{tokens['median']}, {tokens['p95']}, {tokens['longest']}"
        counts = (str(split[count]) for count in ("pairs", "prompts", "refused_by_template"))
        table.add_row(name, *counts, lengths, aside or "nothing")
    return table


def _needs(needs: list[dict[str, Any]]) -> Table:
    """Those that are met are not shown; one that tells how the gate can pass is."""
    table = Table("", "param", "there", "asked", "what to change", box=None, title="\nNeeds", title_justify="left")
    table.columns[4].overflow = "fold"
    shown = [need for need in needs if need["found"] < need["needed"] or need["stops"]]
    for need in shown:
        verdict = "NO" if need["stops"] else "few"
        table.add_row(verdict, need["key"], str(need["found"]), str(need["needed"]), escape(need["text"]))
    if not shown:
        table.add_row("ok", "all", "", "", "nothing")
    return table


def _cost(fit: Mapping[str, Any]) -> Iterator[str]:
    parts = ", ".join(f"{name} {taken:.1f}" for name, taken in fit["minutes"].items())
    total = sum(fit["minutes"].values())
    yield f"\nTime:    about {total:.0f} min, give or take a factor of two ({parts}); {fit['minutes_how']}"
    disk = fit["disk"]
    yield f"Disk:    {decimal(disk['added_bytes'])} stay, {decimal(disk['working_bytes'])} more while it runs"
