"""Verb: champion and challenger over the log of what was served, judged by the champion's reward model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.data_contracts.errors import PlumblineError
from plumbline.tasks.operations.monitoring.live_report import JudgedTraffic, Logged, compare, mirrored
from plumbline.tasks.operations.serving import log
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.signing.keys import verifying_key
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve
from plumbline.tasks.storage.database import read_database
from plumbline.tasks.storage.versioning.objects import ObjectStore


def report_live(root: Path, params: Params, *, since: datetime | None = None) -> dict[str, Any]:
    """The comparison of the last challenger in the log with the last champion that it stood beside, as JSON.

    Without traffic, a challenger or a judge the rows that need it are empty, and `notes` say why.
    """
    engine = read_database(root, params.operations, log.METADATA)
    champion, challenger, logged = _of_one_pair(list(log.interactions(engine, since=since)))
    judged = _judge(root, params, champion, logged)
    notes = [f"{len(logged)} requests, {len(mirrored(logged))} of them answered by both."]
    if isinstance(judged, str):
        notes.append(f"No judge: {judged}")
    else:
        mean = f"{np.mean(judged.margins):.4g}" if judged.margins else "-"
        notes.append(f"Mean reward margin of the challenger: {mean} (without bounds, so without such an interval).")
    rows = compare(logged, judged, params.monitor.alpha)
    return {
        "champion": champion,
        "challenger": challenger,
        "since": since.isoformat() if since else None,
        "alpha": params.monitor.alpha,
        "requests": len(logged),
        "notes": notes,
        "rows": [row.as_json() for row in rows],
    }


def _of_one_pair(logged: Sequence[Logged]) -> tuple[str | None, str | None, list[Logged]]:
    """The last challenger and champion, and the requests that no other version answered."""
    last = {answer.side: answer.model_uri for request, _ in logged for answer in request.answers}
    champion, challenger = last.get("champion"), last.get("challenger")
    uris = {"champion": champion, "challenger": challenger}
    kept = [item for item in logged if all(answer.model_uri == uris[answer.side] for answer in item[0].answers)]
    return champion, challenger, kept


def _judge(root: Path, params: Params, champion: str | None, logged: Sequence[Logged]) -> JudgedTraffic | str:
    """Both answers of each mirrored request scored by the champion's judge; pairs beyond its length are left out."""
    from plumbline.tasks.models.loading import seed_everything
    from plumbline.tasks.training.rewards.held_out import choose_judge
    from plumbline.tasks.training.rewards.scoring import RewardModel

    pairs = mirrored(logged)
    if champion is None or not pairs:
        return "no request was answered by both"
    try:
        store = Store(root, params.registry, read_only=True)
        stored = StoredFiles(store, resolve(store, champion))
        stored.require_signed(verifying_key(root, params.registry))
        digest = str(stored.manifest()["objects"]["reward"]["md5"])
        seed_everything(params.seed, params.threads)
        with tempfile.TemporaryDirectory() as scratch:
            objects = ObjectStore(root)
            for name, file in objects.listing(digest).items():
                objects.fetch(file, Path(scratch) / name)
            folder = choose_judge(Path(scratch))[1]
            model = RewardModel.load(folder, trust_remote_code=params.reference.trust_remote_code)
            prompts = [request.prompt for request, _, _ in pairs]
            mine = model.score_fitting(prompts, [answer.text for _, answer, _ in pairs])
            theirs = model.score_fitting(prompts, [answer.text for _, _, answer in pairs])
    except PlumblineError as error:
        return str(error)
    margins = np.array(
        [new - old for old, new in zip(mine, theirs, strict=True) if old is not None and new is not None]
    )
    # A score of single answers agrees with itself when positions are swapped, so one order is both.
    chances = 1 / (1 + np.exp(-np.clip(margins, -500, 500)))
    voters = [request.voter for (request, _, _), *scores in zip(pairs, theirs, mine, strict=True) if None not in scores]
    return JudgedTraffic(((np.sign(margins) + 1) / 2).tolist(), chances.tolist(), margins.tolist(), voters)
