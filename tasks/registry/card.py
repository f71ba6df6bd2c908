"""The model card: a manifest in Markdown, for people. Every figure comes from the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tasks.registry.runs import flatten


def render_card(manifest: Mapping[str, Any]) -> str:
    """The card's text. `manifest` may lack `files`, since the card is one of them."""
    parts = [
        _head(manifest),
        _data(manifest),
        _training(manifest),
        _evaluation(manifest["evaluation"]),
        _gate(manifest["gate"]),
        _limits(manifest),
        _lineage(manifest),
        _commands(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _head(manifest: Mapping[str, Any]) -> str:
    name, gate = manifest["model"]["name"], manifest["gate"]
    verdict = "passed the gate" if gate["passed"] else "was **rejected** by the gate"
    return (
        f"# {name}\n\nA language model aligned with human preferences by Plumbline. This version {verdict}.\n"
        f"Results key `{manifest['model']['key']}`."
    )


def _data(manifest: Mapping[str, Any]) -> str:
    counts = manifest["counts"]
    names = [name for name in ("read", "accepted", "merged", "quarantined") if name in counts]
    rows = [(name, counts[name]) for name in names]
    rows += [(f"quarantined: {reason}", count) for reason, count in counts.get("reasons", {}).items()]
    rows += [(f"split: {split}", count) for split, count in counts.get("splits", {}).items()]
    batches = f"{len(manifest['raw_batches'])} raw batch(es) ingested from files."
    return f"## Data\n\nread = accepted + merged + quarantined. {batches}\n\n{_table(('records', 'count'), rows)}"


def _training(manifest: Mapping[str, Any]) -> str:
    rows = [
        (f"{stage}: {key}", value)
        for stage in ("base", "reference", "reward", "finetune")
        for key, value in flatten(manifest["as_run"].get(stage, {}))
        if not isinstance(value, list | dict)
    ]
    return f"## Training, as run\n\n{_table(('setting or figure', 'value'), rows)}"


def _evaluation(metrics: Mapping[str, Any]) -> str:
    rows = [(name, _number(value), interval, count) for name, value, interval, count in estimates(metrics)]
    return f"## Evaluation on the test split\n\n{_table(('metric', 'value', 'interval', 'n'), rows)}"


def _gate(gate: Mapping[str, Any]) -> str:
    rows = []
    for reason in gate["reasons"]:
        entry = reason if isinstance(reason, Mapping) else {"text": reason, "passed": gate["passed"]}
        rows.append(("yes" if entry.get("passed") else "**no**", entry.get("text", entry.get("name", ""))))
    return f"## Gate: {'passed' if gate['passed'] else 'rejected'}\n\n{_table(('passed', 'check'), rows)}"


def _limits(manifest: Mapping[str, Any]) -> str:
    lines = [
        "The figures hold for prompts like those of the test split, judged as the metrics' names say. "
        "The reward model that judges was trained on the same feedback: see its audit among the stages.",
    ]
    if manifest["git"]["dirty"]:
        lines.append("The workspace had uncommitted changes; the manifest holds them as a diff.")
    dropped = manifest["counts"].get("quarantined", 0)
    if dropped:
        lines.append(f"{dropped} records were set aside and taught the model nothing.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _lineage(manifest: Mapping[str, Any]) -> str:
    rows = [(role, entry["path"], f"`{entry['md5']}`") for role, entry in manifest["objects"].items()]
    program, git = manifest["program"], manifest["git"]
    source = program["git_commit"] or f"source {program['source_sha256'][:16]}"
    note = (
        f"Program plumbline {program['version']} ({source}), workspace commit {git['commit']}, "
        f"Python {manifest['environment']['python']}, environment `{manifest['environment']['sha256'][:16]}`."
    )
    return f"## Lineage\n\n{_table(('object', 'path', 'DVC hash'), rows)}\n\n{note}"


def _commands(manifest: Mapping[str, Any]) -> str:
    name = manifest["model"]["name"]
    return (
        "## Audit and restore\n\n"
        f"    plumbline audit models:/{name}/VERSION        # re-hash every object, down to the raw batches\n"
        f"    plumbline audit --record ID                   # which versions used a record\n"
        f"    plumbline restore models:/{name}/VERSION --to DIR"
    )


def estimates(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float, str, str]]:
    """The numbers among nested metrics: dotted name, value, interval in words, n in words.

    An estimate is a mapping with "value" and perhaps "low", "high" and "n"; what lies beside these
    in the same mapping is visited as well.
    """
    for key, item in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            if isinstance(item.get("value"), int | float):
                yield name, item["value"], _interval(item), str(item.get("n", ""))
            own = ("value", "low", "high", "n") if "value" in item else ()
            yield from estimates({key: value for key, value in item.items() if key not in own}, f"{name}.")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield name, item, "", ""


def _interval(item: Mapping[str, Any]) -> str:
    low, high = item.get("low"), item.get("high")
    return f"[{_number(low)}, {_number(high)}]" if low is not None and high is not None else ""


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(_number(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    titles = list(head)
    return "\n".join([line(titles), "|" + "---|" * len(titles), *map(line, rows)])
