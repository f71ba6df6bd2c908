"""Verb: one look of the monitor. What the champion answered and what people labelled since the last look is judged,
remembered, tested, and a finding asks for a retraining run.

Whatever is missing (no champion, no traffic, no labels, a lost object) is "not measured" with the reason, never a
finding. Models and data are the champion's own, by hash: its checkpoint verified, π_ref, reward model and dataset from
DVC's objects, whatever the workspace holds now.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from sqlalchemy import Engine

from plumbline.data_contracts.artifact import write_bytes, write_json
from plumbline.data_contracts.errors import OperationsError, PlumblineError
from plumbline.data_contracts.interactions import Interaction, ServedCompletion
from plumbline.data_contracts.records import CuratedPair, PreferencePair, load_jsonl
from plumbline.tasks.data.feedback.validate import raw_batches, sort_rows
from plumbline.tasks.data.feedback.withdrawals import load_withdrawals
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.models.completion_lengths import evaluated_length
from plumbline.tasks.operations.announce import api_url, drain_outbox, request_retraining
from plumbline.tasks.operations.judge_traffic import judge_traffic
from plumbline.tasks.operations.monitoring import observations
from plumbline.tasks.operations.monitoring.checks import RIVAL, STREAMS, MonitorEvidence, read
from plumbline.tasks.operations.monitoring.drift import shifts
from plumbline.tasks.operations.monitoring.report import markdown
from plumbline.tasks.operations.promote_model import champion_of, previous_of
from plumbline.tasks.operations.serving import log
from plumbline.tasks.params.lengths import with_length
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.signing.keys import verifying_key
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, Version
from plumbline.tasks.registry.versions.serving_files import verified_model
from plumbline.tasks.storage.database import open_database
from plumbline.tasks.storage.versioning.objects import ObjectStore

FOLDER = Path(".plumbline") / "monitor"


@dataclass(slots=True)
class Look:
    """One look while it is taken: values by stream and item, what could not be measured, what drift says."""

    key: str
    now: datetime
    streams: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    drift_words: dict[str, str] = field(default_factory=dict)
    voters: dict[str, str] = field(default_factory=dict)  # request -> its user, where one was named


@dataclass(frozen=True, slots=True)
class Subject:
    """The champion and where its data is."""

    root: Path
    params: Params
    version: Version
    manifest: Mapping[str, Any]
    engine: Engine
    scratch: Path
    previous: Version | None = None

    @property
    def against_previous(self) -> str:
        """The process of what is observed against the champion before: another one before it starts anew."""
        return f"{self.version.uri} against {self.previous.uri if self.previous else None}"

    def fetched(self, role: str) -> Path:
        """A DVC object of the champion (reference, reward, curated), re-hashed into the scratch folder."""
        folder, objects = self.scratch / role, ObjectStore(self.root)
        if not folder.exists():
            for name, digest in objects.listing(str(self.manifest["objects"][role]["md5"])).items():
                objects.fetch(digest, folder / name)
        return folder


def monitor_policy(
    root: Path, params: Params, *, look: str | None = None, now: datetime | None = None, server: str | None = None
) -> dict[str, Any]:
    """Take one look and write its report under `.plumbline/monitor`; returns the report as JSON.

    `look` names the look (by default the day, UTC). What was looked at before is left out, so that a late or repeated
    look counts nothing twice. One look at a time. Raises `RegistryError` or `OperationsError` where registry or
    database refuse; events that cannot be sent are in the report and stay in the outbox.
    """
    moment = now or datetime.now(UTC)
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "monitor.lock"):
        taken = Look(look or moment.date().isoformat(), moment)
        report = _look(root, params, taken, server)
        name = "".join(character if character.isalnum() or character in "-_" else "_" for character in taken.key)
        (folder / name).mkdir(exist_ok=True)
        report["path"] = (FOLDER / name).as_posix()
        write_json(folder / name / "report.json", report)
        write_bytes(folder / name / "report.md", markdown(report).encode())
        return report


def _look(root: Path, params: Params, look: Look, server: str | None) -> dict[str, Any]:
    champion = champion_of(root, params)
    if champion is None:
        evidence = MonitorEvidence({}, dict.fromkeys((*STREAMS, "drift", "freshness"), "there is no champion yet"))
        return _report(look, None, params, evidence, {}, {})
    engine = open_database(root, params.operations, observations.METADATA)
    stored = StoredFiles(Store(root, params.registry), champion)
    stored.require_signed(verifying_key(root, params.registry))
    manifest = stored.manifest()
    with tempfile.TemporaryDirectory() as scratch:
        params = with_length(params, evaluated_length(manifest))  # π_ref and the rival answer as in its evaluation
        subject = Subject(root, params, champion, manifest, engine, Path(scratch), previous_of(root, params))
        _observe(subject, look)
    against = {RIVAL: look.streams.pop(RIVAL)} if RIVAL in look.streams else {}
    observations.add(engine, champion.uri, look.key, look.streams, look.voters)
    observations.add(engine, subject.against_previous, look.key, against, look.voters)
    evidence = _evidence(subject, look)
    found = {item.name: item.as_json() for item in read(evidence, params.monitor) if item.verdict == "finding"}
    kept = observations.keep_findings(engine, champion.uri, look.key, found)
    return _report(look, champion, params, evidence, kept, _request(subject, kept, server))


def _observe(subject: Subject, look: Look) -> None:
    """Fill the look; what fails for a reason of ours leaves its streams unmeasured, with that reason."""
    traffic = _traffic(subject, look)
    look.voters = {request.id: request.voter for request, _ in traffic if request.user is not None}
    for streams, observe in (
        (("violation", "refusal"), _observe_answers),
        (("win_rate",), _observe_wins),
        ((RIVAL,), _observe_rival),
        (("drift",), _observe_drift),
    ):
        if not traffic:
            look.missing |= dict.fromkeys(streams, "the champion served no answer in the days that a look reads")
            continue
        try:
            observe(subject, look, traffic)
        except PlumblineError as error:
            look.missing |= dict.fromkeys(streams, str(error))
    try:
        _observe_labels(subject, look)
    except PlumblineError as error:
        look.missing |= dict.fromkeys(("preference_accuracy", "judge_agreement", "brier"), str(error))


def _traffic(subject: Subject, look: Look) -> list[tuple[Interaction, ServedCompletion]]:
    """Requests that the champion answered, whole and for the user, oldest first."""
    engine = open_database(subject.root, subject.params.operations, log.METADATA)
    since = look.now - timedelta(days=subject.params.monitor.traffic_days)
    return [
        (interaction, interaction.answers[0])
        for interaction, _ in log.interactions(engine, since=since)
        if interaction.answers[0].model_uri == subject.version.uri and interaction.answers[0].error is None
    ]


def _observe_answers(subject: Subject, look: Look, traffic: Sequence[tuple[Interaction, ServedCompletion]]) -> None:
    look.streams["violation"] = {request.id: float(answer.violation) for request, answer in traffic}
    look.streams["refusal"] = {request.id: float(answer.refusal) for request, answer in traffic}


def _observe_wins(subject: Subject, look: Look, traffic: Sequence[tuple[Interaction, ServedCompletion]]) -> None:
    """π_ref answers the newest prompts that were not judged yet; the champion's judge compares, in both positions."""
    fresh = _unjudged(subject, traffic, subject.version.uri, "win_rate")
    if fresh:
        rival, reward, seed = (
            subject.fetched("reference"),
            subject.fetched("reward"),
            _seed(subject.params.seed, look.key),
        )
        look.streams["win_rate"] = judge_traffic(subject.params, fresh, rival, reward, seed=seed, stored={})


def _observe_rival(subject: Subject, look: Look, traffic: Sequence[tuple[Interaction, ServedCompletion]]) -> None:
    """The same against the champion before: its answers in shadow if there are any, else those it gives now."""
    previous = subject.previous
    if previous is None:
        look.missing[RIVAL] = "there is no champion before this one"
        return
    fresh = _unjudged(subject, traffic, subject.against_previous, RIVAL)
    if not fresh:
        return
    folder = verified_model(Store(subject.root, subject.params.registry), previous, subject.root)
    stored = {
        request.id: answer.text
        for request, _ in fresh
        for answer in request.answers[1:]
        if answer.model_uri == previous.uri and answer.error is None
    }
    seed = _seed(subject.params.seed, look.key)
    look.streams[RIVAL] = judge_traffic(
        subject.params, fresh, folder, subject.fetched("reward"), seed=seed, stored=stored
    )


def _unjudged(
    subject: Subject, traffic: Sequence[tuple[Interaction, ServedCompletion]], process: str, stream: str
) -> list[tuple[Interaction, ServedCompletion]]:
    """The newest requests of the traffic that this stream has no value of yet."""
    known = set(observations.items(subject.engine, process, stream))
    return [item for item in traffic if item[0].id not in known][-subject.params.monitor.judged_per_look :]


def _observe_drift(subject: Subject, look: Look, traffic: Sequence[tuple[Interaction, ServedCompletion]]) -> None:
    params = subject.params.monitor
    known = set(observations.items(subject.engine, subject.version.uri, "drift.prompts"))
    if look.key in observations.items(subject.engine, subject.version.uri, "drift.length"):
        return  # one look a day: its prompts are settled
    texts = {request.id: "\n".join(message.content for message in request.prompt) for request, _ in traffic}
    rng = np.random.default_rng(_seed(subject.params.seed, look.key))
    unseen = _one_a_voter([name for name in texts if name not in known], look.voters, rng)
    # drawn at random: the oldest first would fall ever further behind a busy service
    fresh = [unseen[row] for row in sorted(rng.permutation(len(unseen))[: params.drift_max_prompts])]
    if len(fresh) < params.drift_min_prompts:
        look.missing["drift"] = (
            f"{len(fresh)} new prompts of different users, {params.drift_min_prompts} are waited for"
        )
        return
    training = _training_prompts(subject)
    if len(training) < params.drift_min_prompts:
        look.missing["drift"] = (
            f"{len(training)} training prompts, {params.drift_min_prompts} are needed to compare with"
        )
        return
    pool = [*training, *(texts[name] for name in texts if name in known)]
    found = shifts(pool, [texts[name] for name in fresh], _seed(subject.params.seed, look.key))
    look.streams["drift.prompts"] = dict.fromkeys(fresh, 0.0)
    for feature, shift in found.items():
        look.streams[f"drift.{feature}"] = {look.key: shift.p}
        look.drift_words[feature] = shift.words


def _one_a_voter(names: Sequence[str], voters: Mapping[str, str], rng: np.random.Generator) -> list[str]:
    """One request of each user, drawn at random, in their order: one person's prompts resemble one another."""
    drawn: dict[str, int] = {}
    for row in rng.permutation(len(names)):
        drawn.setdefault(voters.get(names[row], names[row]), int(row))
    return [names[row] for row in sorted(drawn.values())]


def _training_prompts(subject: Subject) -> list[str]:
    pairs = load_jsonl(subject.fetched("curated") / "train.jsonl", CuratedPair)
    texts = ["\n".join(message.content for message in prompt) for prompt in dict.fromkeys(p.prompt for p in pairs)]
    rng = np.random.default_rng(subject.params.seed)
    kept = rng.permutation(len(texts))[: subject.params.monitor.drift_reference]
    return [texts[row] for row in kept]


def _observe_labels(subject: Subject, look: Look) -> None:
    """Score pairs that people labelled and the champion's data does not hold, by its reward model and its judge."""
    from plumbline.tasks.models.loading import seed_everything
    from plumbline.tasks.training.rewards.held_out import choose_judge
    from plumbline.tasks.training.rewards.scoring import RewardModel

    params = subject.params
    known = set(observations.items(subject.engine, subject.version.uri, "brier"))
    pairs = {name: pair for name, pair in _fresh_labels(subject).items() if name not in known}
    names = list(pairs)[: params.monitor.labels_per_look]
    if not names:
        look.missing |= dict.fromkeys(("preference_accuracy", "judge_agreement", "brier"), "no fresh labels of people")
        return
    seed_everything(params.seed, params.threads)
    reward = subject.fetched("reward")
    held_out, judge_folder = choose_judge(reward)
    margins = _margins(RewardModel.load(reward, trust_remote_code=params.reference.trust_remote_code), names, pairs)
    look.streams["preference_accuracy"] = {name: (np.sign(margin) + 1) / 2 for name, margin in margins.items()}
    look.streams["brier"] = {
        name: float((1 / (1 + np.exp(min(margin, 500.0)))) ** 2) for name, margin in margins.items()
    }
    if held_out != "held_out":
        look.missing["judge_agreement"] = "the champion has no held-out judge (reward.held_out_share)"
        return
    judge = RewardModel.load(judge_folder, trust_remote_code=params.reference.trust_remote_code)
    agreed = _margins(judge, names, pairs)
    look.streams["judge_agreement"] = {name: (np.sign(margin) + 1) / 2 for name, margin in agreed.items()}


def _margins(model: Any, names: Iterable[str], pairs: Mapping[str, PreferencePair]) -> dict[str, float]:
    """Reward of chosen less rejected, by pair; pairs beyond the model's length are left out."""
    named = list(names)
    prompts = [pairs[name].prompt for name in named]
    sides = [model.score_fitting(prompts, [getattr(pairs[name], side) for name in named]) for side in _SIDES]
    scored = zip(named, *sides, strict=True)
    return {name: chosen - rejected for name, chosen, rejected in scored if None not in (chosen, rejected)}


_SIDES = ("chosen", "rejected")


def _fresh_labels(subject: Subject) -> dict[str, PreferencePair]:
    """Pairs of `human_pairs` batches that came after the champion's data, by what they say."""
    used = {batch["path"] for batch in subject.manifest["raw_batches"]}
    batches = [
        batch
        for batch in raw_batches(subject.root / RAW, within=subject.root)
        if batch[0] == "human_pairs" and batch[1] not in used
    ]
    if not batches:
        return {}
    folder = subject.scratch / "labels"
    folder.mkdir()
    # a part of a data set, to which no rule on whole ones applies
    withdrawn = load_withdrawals(subject.root / RAW)
    sort_rows(batches, subject.params.feedback, folder, withdrawn=withdrawn, skip_unreadable=True)
    pairs = load_jsonl(folder / "accepted.jsonl", PreferencePair)
    return {pair.content_id(): pair for pair in pairs}


def _evidence(subject: Subject, look: Look) -> MonitorEvidence:
    judged = subject.manifest["evaluation"].get("win_rate", {}).get("judge") or {}
    used = {batch["path"] for batch in subject.manifest["raw_batches"]}
    ages = {
        name: max(0.0, (look.now.timestamp() - path.stat().st_mtime) / 86_400)  # a clock that jumped back says 0
        for _, name, path in raw_batches(subject.root / RAW, within=subject.root)
    }
    mine = [age for name, age in ages.items() if name in used]
    return MonitorEvidence(
        observations.observed(subject.engine, subject.version.uri, STREAMS)
        | observations.observed(subject.engine, subject.against_previous, [RIVAL]),
        look.missing,
        judged.get("low"),
        min(mine, default=None),
        min(ages.values(), default=None),
        look.drift_words,
    )


def _request(
    subject: Subject, findings: Mapping[str, Mapping[str, Any]], server: str | None
) -> dict[str, dict[str, Any]]:
    """Ask for one run because of all findings; a champion and monitor asks once, asking again has no effect.

    All enter the outbox before any is sent: the run that the first event starts then answers for every one.
    """
    requests = {}
    for name, finding in findings.items():
        key = f"finding/{hashlib.sha256(f'{subject.version.uri} {name}'.encode()).hexdigest()[:16]}"
        why = f"{subject.version.uri}: {name}: {finding['evidence']['why']}"
        entry = request_retraining(subject.root, subject.params, key=key, why=why, evidence=finding["evidence"])
        state = "sent to the server" if entry.emitted_at is not None else "in the outbox"
        requests[name] = {"key": key, "why": why, "state": state}
    if any(request["state"] == "in the outbox" for request in requests.values()) and api_url(server) is not None:
        try:
            told = {entry.key for entry in drain_outbox(subject.root, subject.params, server)}
            trouble = "in the outbox"
        except OperationsError as error:  # the report has to be written all the same; the next look asks again
            told, trouble = set(), f"not sent yet: {error}"
        for request in requests.values():
            if request["state"] == "in the outbox":
                request["state"] = "sent to the server" if request["key"] in told else trouble
    return requests


def _report(
    look: Look,
    champion: Version | None,
    params: Params,
    evidence: MonitorEvidence,
    findings: Mapping[str, Any],
    requests: Mapping[str, Any],
) -> dict[str, Any]:
    readings = [reading.as_json() for reading in read(evidence, params.monitor)]
    for reading in readings:
        if reading["name"] in findings and reading["verdict"] != "finding":
            since = findings[reading["name"]]["look"]
            reading |= {"verdict": "finding", "why": f"found at look {since}; now: {reading['why']}"}
    return {
        "look": look.key,
        "at": look.now.isoformat(),
        "champion": champion.uri if champion else None,
        "alpha": params.monitor.alpha,
        "readings": readings,
        "findings": [reading["name"] for reading in readings if reading["verdict"] == "finding"],
        "requests": dict(requests),
    }


def _seed(seed: int, key: str) -> int:
    return (seed + int(hashlib.sha256(key.encode()).hexdigest()[:8], 16)) % 2**31
