"""The model card: a manifest in Markdown, for people. Every figure comes from the manifest.

It opens with what the model is, its key figures, its use and limits; every figure and setting stands at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from plumbline.data_contracts.figures import FIGURES, judge_of, words_of
from plumbline.tasks.params.section import flatten

# What is said of a method as it was run: pieces filled from its facts, those with an unknown fact left out.
_OFFLINE = (
    "LoRA of rank {settings.lora.r}",
    "{pairs.train:,} pairs",
    "{examples.used:,} examples",
    "{examples.desirable:,} desirable and {examples.undesirable:,} undesirable examples",
)
_ON_POLICY = (
    "KL target {kl_target:g} nats per token",
    "β fixed at {kl_beta:g}",
    "final β {implied_beta:.3g}",
    "LoRA of rank {settings.lora.r}",
    "{prompts.train:,} prompts",
)
METHOD_PIECES = {
    "sft": ("loss on chosen responses", *_OFFLINE),
    "dpo": ("β {settings.beta}", "loss {settings.loss_type}", "SFT weight {settings.sft_weight}", *_OFFLINE),
    "kto": ("β {settings.beta}", "loss {settings.loss_type}", *_OFFLINE),
    "orpo": ("β {settings.beta}", "odds-ratio loss", *_OFFLINE),
    "ppo": ("reward {reward}", *_ON_POLICY, "{episodes:,} episodes"),
    "grpo": (
        "{settings.num_generations} candidates a prompt",
        "{settings.candidates} candidates a prompt",  # as recorded before 0.2
        "ranked by the judge {ranking.judge}",
        "κ {ranking.kappa:.2f} with people",
        "noise {ranking.noise.value:.2f}",
        "gains {ranking.gains}",
        "reward {reward} at weight {settings.reward_weight:g}",
        *_ON_POLICY,
    ),
}
_EVERY_METHOD = (
    "{steps.run:,} of {steps.planned:,} steps",
    "best checkpoint by {best.metric} at step {best.step:,}",
    "{findings} of the monitors",
)
_FINDINGS_SHOWN = 5  # of a method; the manifest holds them all
_MOSTLY_FINISHED = 0.95  # below this share of responses that end by themselves the card warns
_FIELD = re.compile(r"\{([^}:]+):?([^}]*)\}")


def render_card(manifest: Mapping[str, Any]) -> str:
    """The card's text. `manifest` may lack `files`, since the card is one of them."""
    parts = [
        _head(manifest),
        _summary(manifest),
        _key_figures(manifest),
        *_warnings(manifest),
        _use(manifest),
        _limits(manifest),
        _data(manifest),
        _gate(manifest["gate"]),
        _lineage(manifest),
        _commands(manifest),
        _evaluation(manifest["evaluation"]),
        _training(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _head(manifest: Mapping[str, Any]) -> str:
    name, gate = manifest["model"]["name"], manifest["gate"]
    verdict = "passed the gate" if gate["passed"] else "was **rejected** by the gate"
    return (
        f"# {name}\n\nA language model aligned with human preferences by Plumbline. This version {verdict}.\n"
        f"Results key `{manifest['model']['key']}`."
    )


def _summary(manifest: Mapping[str, Any]) -> str:
    run = manifest["as_run"]
    lines = {
        "base": _sentence(
            run.get("base", {}),
            "{source}",
            "revision {revision}",
            "{architecture}",
            "{parameters:,} parameters",
            "context of {context_length:,} tokens",
        ),
        "reference policy π_ref": _sentence(
            run.get("reference", {}), "{method}", "{examples.used:,} conversations", "{steps:,} steps"
        ),
        "reward model": _sentence(run.get("reward", {}), "{architecture}", "{pairs.train:,} pairs", "{steps:,} steps"),
        "held-out judge": _sentence(
            run.get("reward", {}).get("held_out") or {}, "{architecture}", "{pairs.train:,} pairs", "{steps:,} steps"
        ),
        **_methods(run.get("finetune", {})),
        "completions": _sentence(
            run.get("evaluate", {}) | {"own": run.get("lengths", {})},
            "at most {max_new_tokens:,} tokens in the evaluation",
            "{own.ended:.0%} of {own.completions} of π_ref's own end within {own.cap:,}",
        ),
        "data": _sentence(
            manifest["counts"], "{read:,} records read", "{accepted:,} accepted", "{splits.train:,} for training"
        ),
    }
    rows = [(name, text) for name, text in lines.items() if text]
    return f"## What it is\n\n{_table(('part', 'as run'), rows)}"


def _methods(finetune: Mapping[str, Any]) -> dict[str, str]:
    """A sentence for the method, or one per stage of a stack, by the words of its row."""
    return {
        "method" if name is None else f"method {name}": _sentence(
            _readable(facts), "{method}", *METHOD_PIECES.get(facts["method"], ()), *_EVERY_METHOD
        )
        for name, facts in _stages(finetune)
    }


def _stages(finetune: Mapping[str, Any]) -> list[tuple[str | None, Mapping[str, Any]]]:
    """Facts of each stage of a stack by its name, with those of all; a method alone has no name."""
    if not finetune:
        return []
    shared = {name: finetune[name] for name in ("ranking", "reward_terms") if name in finetune}
    if "stages" not in finetune:
        return [(None, finetune)]
    return [(name, {**shared, **facts}) for name, facts in finetune["stages"].items()]


def _readable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a method with what takes words: the terms of its reward, the tie to π_ref, the monitors' findings."""
    found: dict[str, Any] = {name: value for name, value in facts.items() if name not in ("findings", "reward")}
    settings = facts.get("settings", {})
    kl = settings.get("kl")
    if kl is not None:
        fixed = kl.get("mode") == "fixed"
        # before 0.2 β was recorded with its control
        found |= {"kl_beta": settings.get("beta", kl.get("beta"))} if fixed else {"kl_target": kl.get("target")}
    terms = facts.get("reward_terms")
    if terms and (facts["method"] != "grpo" or settings.get("reward_weight")):
        found["reward"] = " + ".join(f"{term['weight']:g} x {term['name']}" for term in terms)
    if "findings" in facts:
        count = len(facts["findings"])
        found["findings"] = f"{count or 'no'} finding{'' if count == 1 else 's'}"
    return found


def _sentence(facts: Mapping[str, Any], *pieces: str) -> str:
    """The pieces whose facts are all known, filled in."""
    known = {name: value for name, value in flatten(facts) if value is not None}
    return ", ".join(filter(None, (_fill(piece, known) for piece in pieces)))


def _fill(piece: str, known: Mapping[str, Any]) -> str | None:
    if not all(name in known for name, _ in _FIELD.findall(piece)):
        return None
    return _FIELD.sub(lambda match: format(known[match[1]], match[2]), piece)


def _key_figures(manifest: Mapping[str, Any]) -> str:
    found = {name: (_number(value), interval, n) for name, value, interval, n in estimates(manifest["evaluation"])}
    judge = judge_of(manifest["evaluation"])
    rows = [(words_of(name, judge), *found[name]) for name in FIGURES if name in found]
    return f"## Key figures, on the test split\n\n{_table(('figure', 'value', _interval_title(manifest), 'n'), rows)}"


def _warnings(manifest: Mapping[str, Any]) -> list[str]:
    """The warnings of the stages; no section if there were none, or the stages were older."""
    lines = [f"- {entry['text']} (stage `{entry['stage']}`)" for entry in manifest.get("warnings", ())]
    return ["## Warnings\n\n" + "\n".join(lines)] if lines else []


def _interval_title(manifest: Mapping[str, Any]) -> str:
    confidence = dict(flatten(manifest["settings"])).get("evaluation.confidence")
    return f"{100 * confidence:g} % interval" if isinstance(confidence, float) else "interval"


def _use(manifest: Mapping[str, Any]) -> str:
    world = manifest["as_run"].get("sample_world", {}).get("enabled", False)
    batches = [batch["path"] for batch in manifest["raw_batches"]]
    if world and not batches:
        text = (
            "A demonstration. It learned from Plumbline's sample world, a made-up support desk, and from nothing else; "
            "it shows that the loop works and is of no use to people."
        )
    else:
        text = (
            "Answering prompts like those of its feedback, in the languages and domains found there. Read samples of "
            "its answers (`evaluation/samples.jsonl`) before people meet them, and do not rely on it if nobody "
            "checks its facts."
        )
        text += " Part of the feedback is Plumbline's made-up sample world." if world else ""
    return f"## Intended use\n\n{text}"


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
    return f"## Every setting and figure of training\n\n{_table(('setting or figure', 'value'), rows)}"


def _evaluation(metrics: Mapping[str, Any]) -> str:
    rows = [(name, _number(value), interval, count) for name, value, interval, count in estimates(metrics)]
    return f"## Every figure on the test split\n\n{_table(('metric', 'value', 'interval', 'n'), rows)}"


def _gate(gate: Mapping[str, Any]) -> str:
    rows = [("yes" if entry["passed"] else "**no**", entry["text"]) for entry in _reasons(gate)]
    return f"## Gate: {'passed' if gate['passed'] else 'rejected'}\n\n{_table(('passed', 'check'), rows)}"


def _reasons(gate: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(gate["reasons"])


def _limits(manifest: Mapping[str, Any]) -> str:
    lines = [
        "The figures hold for prompts like those of the test split, judged as their names say. The "
        f"{judge_of(manifest['evaluation'])} that judges was trained on the same feedback; its own audit is below.",
        *_judged_by(manifest),
        "Languages, facts about the world and harms beyond the figures above were not measured.",
    ]
    lines += [f"The gate said no: {entry['text']}" for entry in _reasons(manifest["gate"]) if not entry["passed"]]
    metrics = dict(flatten(manifest["evaluation"]))
    beyond = metrics.get("counts.pairs_over_context")
    if beyond:
        lines.append(f"{beyond} of {metrics.get('counts.pairs')} test pairs exceed the context and were not measured.")
    finished = metrics.get("text.policy.finished.value")
    if finished is not None and finished < _MOSTLY_FINISHED:
        lines.append(
            f"{1 - finished:.0%} of the sampled responses were cut at `evaluation.max_new_tokens` and judged so."
        )
    lines += _found_by_monitors(manifest["as_run"].get("finetune", {}))
    dropped = manifest["counts"].get("quarantined", 0)
    if dropped:
        lines.append(f"{dropped} records were set aside and taught the model nothing.")
    if manifest["git"]["dirty"]:
        lines.append("The workspace had uncommitted changes; the manifest holds them as a diff.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _judged_by(manifest: Mapping[str, Any]) -> list[str]:
    """The worth of the judge's win rate, by who the judge was."""
    if manifest["evaluation"].get("held_out_judge") == "held_out":
        return [
            "No policy was trained against the held-out judge, but it is of one kind with the reward model: the same "
            "start and the same people behind other pairs, so that some errors are common to both."
        ]
    if manifest["as_run"].get("finetune", {}).get("optimised_against_judge"):
        return [
            "The policy was optimised against the very judge that reports its win rate, which rises with that judge's "
            "errors too. `reward.held_out_share` trains a held-out judge."
        ]
    return []


def _found_by_monitors(finetune: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, facts in _stages(finetune):
        findings, method = facts.get("findings", []), name or facts["method"]
        lines += [
            f"The monitors of {method} found at step {each['update']}: {each['message']}"
            for each in findings[:_FINDINGS_SHOWN]
        ]
        if len(findings) > _FINDINGS_SHOWN:
            lines.append(
                f"The monitors of {method} found {len(findings) - _FINDINGS_SHOWN} more signs, in the manifest."
            )
    return lines


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
