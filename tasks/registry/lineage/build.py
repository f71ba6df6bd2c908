"""From a version's manifest, its ledger and the health of its objects to the graph of its lineage.

Nothing is read here: the verb hands in plain data. Missing keys of manifests that an older program wrote leave out
nodes, they break nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plumbline.tasks.params.section import PARAMS_FILE, RESOLVED_FILE
from plumbline.tasks.registry.lineage.graph import Graph, Kind, Node, Relation, State

_KINDS: Mapping[str, Kind] = {
    "policy": "policy",
    "reference": "reference",
    "base": "base",
    "reward": "reward_model",
    "curated": "dataset",
    "validated": "dataset",
    "world": "dataset",
    "raw": "dataset",
    "lengths": "lengths",
    "evaluation": "evaluation",
    "gate": "gate",
}
_TITLES = {
    "policy": "policy",
    "reference": "reference policy π_ref",
    "base": "base model",
    "reward": "reward model",
    "curated": "curated preferences",
    "validated": "validated feedback",
    "world": "sample world",
    "raw": "raw feedback",
    "lengths": "completion lengths of π_ref",
    "evaluation": "evaluation",
    "gate": "gate",
}
_SHOWN_FACTS = (
    "parameters",
    "architecture",
    "steps",
    "final_loss",
    "beta",
    "implied_beta",
    "method",
    "source",
    "revision",
    "pairs",
    "max_new_tokens",
)


@dataclass(frozen=True, slots=True)
class DescribedVersion:
    """The facts about a version besides its manifest.

    `ledger` lines are dicts with "at", "action", "alias", "version", "previous", "actor", "reason"; `health` maps a
    path of the workspace, a file of the version, or a name such as "workspace commit" to whether its bytes were found
    to be right, and is empty if nothing was re-hashed; `trigger` is what the outbox knows of the trigger event.
    """

    model_uri: str
    number: str
    manifest_sha256: str
    aliases: Sequence[str]
    registered_at: str
    ledger: Sequence[Mapping[str, Any]] = ()
    health: Mapping[str, bool] = field(default_factory=dict)
    trigger: Mapping[str, Any] = field(default_factory=dict)


def build_graph(manifest: Mapping[str, Any], about: DescribedVersion) -> Graph:
    """The graph of a version, from the version itself to annotators, batches, code and environment."""
    return _Builder(manifest, about).build()


def title_of(manifest: Mapping[str, Any], role: str, path: str) -> str:
    """The title of an object; of a base model that was given, its own name."""
    source = manifest["as_run"].get(role, {}).get("source") if role == "base" else None
    return f"base model {source}" if source else _TITLES.get(role, path)


class _Builder:
    def __init__(self, manifest: Mapping[str, Any], about: DescribedVersion) -> None:
        self.manifest = manifest
        self.about = about
        self.graph = Graph(about.model_uri)
        self.roles = {entry["path"]: role for role, entry in manifest["objects"].items()}
        self.makers = {path: name for name, stage in manifest["stages"].items() for path in stage["outs"]}

    def build(self) -> Graph:
        top = self._version()
        for role, relation in (("policy", "made-from"), ("evaluation", "evaluated-by"), ("gate", "decided-by")):
            if role in self.manifest["objects"]:
                self.graph.link(top, self._object(self.manifest["objects"][role]["path"]), relation)  # type: ignore[arg-type]
        self._operations(top)
        self._origins(top)
        return self.graph

    def state(self, *names: str) -> State:
        if not self.about.health:
            return "unchecked"
        known = [self.about.health[name] for name in names if name in self.about.health]
        return ("ok" if all(known) else "changed") if known else "unchecked"

    def _version(self) -> str:
        passed = self.manifest["gate"]["passed"]
        facts = {
            "registered": self.about.registered_at,
            "aliases": ", ".join(self.about.aliases) or "none",
            "gate": "passed" if passed else "rejected",
            **{f"gate: {reason['name']}": reason["text"] for reason in self.manifest["gate"]["reasons"]},
            "files": len(self.manifest["files"]),
        }
        state = self.state("")
        node = Node("version", "model_version", self.about.model_uri, self.about.manifest_sha256, state, facts)
        return self.graph.add(node)

    def _operations(self, top: str) -> None:
        """The people and events that started, approved and named the version."""
        for alias in self.about.aliases:
            self.graph.add(Node(f"alias:{alias}", "alias", f"@{alias}", facts={"now": "yes"}), top, "named-by")
        for line in self.about.ledger:
            if line["version"] == self.about.number and line["action"] != "delete":
                label = f"{line['action']} to {line['alias']} by {line['actor']}"
                node = Node(f"ledger:{line['seq']}", "approval", label, line["hash"], self.state("ledger"), dict(line))
                self.graph.add(node, top, "approved-by")
        event, flow = self.manifest.get("trigger_event_id"), self.manifest.get("flow_run_id")
        if flow:
            self.graph.add(Node("run", "run", "retraining run", str(flow), facts={"flow run": flow}), top, "run-by")
        if event:
            facts = {"event": event, **self.about.trigger}
            label = str(self.about.trigger.get("kind") or "trigger event")
            self.graph.add(Node("trigger", "trigger", label, str(event), facts=facts), top, "triggered-by")

    def _origins(self, top: str) -> None:
        """Params, code and environment."""
        texts, git, program = self.manifest["texts"], self.manifest["git"], self.manifest["program"]
        file = RESOLVED_FILE if RESOLVED_FILE in texts else PARAMS_FILE  # of an older version, which has one file
        params = texts.get(file, {"sha256": ""})
        node = Node("params", "params", file, params["sha256"], self.state(file))
        self.graph.add(node, top, "configured-by")
        commit = git["commit"] or ""
        facts = {"uncommitted changes": "yes, in the manifest" if git["dirty"] else "none", "diff": git["diff"]}
        code = Node("code:workspace", "code", "workspace commit", commit, self.state("workspace commit"), facts)
        self.graph.add(code, top, "built-with")
        facts = {"plumbline": program.get("version"), "source sha256": program.get("source_sha256")}
        node = Node("code:program", "code", "program", program.get("git_commit") or "", facts=facts)
        self.graph.add(node, top, "built-with")
        lock = self.manifest["environment"]
        facts = {"python": lock["python"], "platform": lock["platform"], "packages": lock["packages"]}
        self.graph.add(
            Node("environment", "environment", "environment lock", lock["sha256"], facts=facts), top, "ran-in"
        )

    def _object(self, path: str) -> str:
        """The node of a path, and everything below it."""
        ident = f"path:{path}"
        if ident in self.graph.nodes:
            return ident
        role = self.roles.get(path, "")
        stage = self.makers.get(path)
        entry = self.manifest["stages"][stage]["outs"][path] if stage else self.manifest["tracked"].get(path, {})
        kind, digest = _KINDS.get(role, "dataset"), entry.get("md5", "")
        facts = {"path": path, "stage": stage or "tracked", **self._facts_of(stage)}
        self.graph.add(Node(ident, kind, title_of(self.manifest, role, path), digest, self.state(path), facts))
        last = self._policy_stages(ident) if role == "policy" else ident
        for dep in sorted(self.manifest["stages"][stage]["deps"]) if stage else ():
            self.graph.link(last, self._object(dep), _relation(kind, self.roles.get(dep, "")))
        self._details(ident, role, path, stage)
        return ident

    def _facts_of(self, stage: str | None) -> dict[str, Any]:
        facts = self.manifest["as_run"].get(stage or "", {})
        shown: dict[str, Any] = {name: facts[name] for name in _SHOWN_FACTS if facts.get(name) is not None}
        contract = (self.manifest["stages"].get(stage or "", {}).get("artifact") or {}).get("digest")
        return {**shown, **({"artifact": contract} if contract else {})}

    def _policy_stages(self, policy: str) -> str:
        """A node a stacked fine-tuning method, last first; returns the first method, which started from π_ref."""
        run = self.manifest["as_run"].get("finetune", {})
        stages = run.get("stages") or {f"1-{run.get('method', 'finetune')}": run}
        above = policy
        for name in reversed(list(stages)):
            facts = {key: value for key, value in stages[name].items() if isinstance(value, str | int | float)}
            settings = stages[name].get("settings")
            node = Node(
                f"method:{name}",
                "policy_stage",
                name.split("-", 1)[-1].upper(),
                str(facts.get("policy_weights", "")),
                self.state("models/policy"),
                {**facts, **({"settings": settings} if settings else {})},
            )
            above = self.graph.add(node, above, "made-from")
        return above

    def _details(self, ident: str, role: str, path: str, stage: str | None) -> None:
        if role == "reward" and "held_out" in self.manifest["as_run"].get("reward", {}):
            held_out = self.manifest["as_run"]["reward"]["held_out"]
            facts = {key: value for key, value in held_out.items() if isinstance(value, str | int | float)}
            node = Node("held_out", "held_out_judge", "held-out judge", "", self.state(path), facts)
            self.graph.add(node, ident, "contains")
            for dep in self.manifest["stages"][stage]["deps"] if stage else ():
                self.graph.link("held_out", f"path:{dep}", "made-from")
        if role in ("validated", "curated"):
            self._account(ident, role, path)
        if role == "validated":
            self._contracts(ident)
        self._batches(ident, path)
        for rubric in self.manifest.get("judge_prompts", ()):
            if stage in rubric["used_by"] or role in rubric["used_by"]:
                label = f"rubric {rubric['name']}@{rubric['version']}"
                node = Node(f"rubric:{rubric['digest']}", "judge_prompt", label, rubric["digest"], facts=dict(rubric))
                self.graph.add(node, ident, "judged-by")

    def _account(self, ident: str, role: str, path: str) -> None:
        """Records by split, quarantine with its reasons, annotators and tokens with their counts."""
        account = self.manifest.get("accounts", {}).get(role, {})
        for name, counts in account.get("lines", {}).items():
            kind: Kind = "quarantine" if name == "quarantine" else "records"
            facts: dict[str, Any] = {"records": counts["all"], "file": f"{path}/{name}.jsonl"}
            if kind == "quarantine" and role == "curated":
                facts["reasons (validation and curation)"] = self.manifest["counts"].get("reasons", {})
            label = f"{name}: {counts['all']:,}"
            state = self.state(f"{path}/{name}.jsonl")
            relation: Relation = "set-aside" if kind == "quarantine" else "contains"
            self.graph.add(Node(f"records:{role}:{name}", kind, label, state=state, facts=facts), ident, relation)
        if role == "curated":
            self._people(ident, account, "annotators", "annotator", "labelled-by")
            self._people(ident, account, "tokens", "token", "sent-by")

    def _people(self, ident: str, account: Mapping[str, Any], counted: str, kind: Kind, relation: Relation) -> None:
        """The people who labelled or sent the records of a dataset, those with most of them first."""
        people: Counter[str] = Counter()
        for counts in account.get(counted, {}).values():
            people.update(counts)
        for name, lines in sorted(people.items(), key=lambda item: (-item[1], item[0])):
            where = {split: counts[name] for split, counts in account[counted].items() if name in counts}
            self.graph.add(Node(f"{kind}:{name}", kind, name, facts={"labels": lines, **where}), ident, relation)

    def _contracts(self, ident: str) -> None:
        for name, suite in self.manifest.get("suites", {}).items():
            label = f"{name} v{suite['version']}"
            node = Node(f"contract:{name}", "contract", label, suite["sha256"], facts=dict(suite))
            self.graph.add(node, ident, "held-to")

    def _batches(self, ident: str, path: str) -> None:
        account = self.manifest.get("accounts", {}).get("curated", {}).get("batches", {})
        for batch in self.manifest["raw_batches"]:
            if batch["path"].startswith(f"{path}/"):
                used = {split: counts[batch["path"]] for split, counts in account.items() if batch["path"] in counts}
                facts = {"path": batch["path"], **used}
                label = batch["path"].removeprefix(f"{path}/")
                node = Node(f"path:{batch['path']}", "batch", label, batch["md5"], self.state(batch["path"]), facts)
                self.graph.add(node, ident, "contains")


def _relation(kind: Kind, role: str) -> Relation:
    if kind in ("evaluation", "gate"):
        return "read"
    return "made-from" if role else "read"
