"""Verb: what users were answered, and what they thought of it, back into the raw store as feedback."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson
from filelock import FileLock, Timeout
from sqlalchemy import Engine

from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.errors import WorkspaceBusy
from plumbline.data_contracts.interactions import Interaction
from plumbline.data_contracts.records import CuratedPair, load_jsonl
from plumbline.tasks.data.ingest_feedback import ingest_feedback
from plumbline.tasks.models.judging import Judge, Judgement, rubric_of
from plumbline.tasks.operations.announce import announce_batches
from plumbline.tasks.operations.serving import harvest, log
from plumbline.tasks.params.whole import Params
from plumbline.tasks.storage.database import open_database

T = TypeVar("T")
R = TypeVar("R")
JUDGED, THUMBS = "judged_pairs", "unpaired_responses"


def harvest_traffic(
    root: Path, params: Params, since: datetime | None = None, server: str | None = None
) -> dict[str, Any]:
    """Mirrored interactions to judged pairs, thumbs to unpaired responses, each interaction once.

    Returns for each of the two its batch (None if nothing new came of it) and counts. Raises `JudgeError` for a
    judge that agrees with people less than `judge.min_kappa`; nothing is lost then, the next harvest goes on. Raises
    `WorkspaceBusy` while another harvest is under way.
    """
    engine = open_database(root, params.operations, log.METADATA)
    with _one_harvest(root):
        return {
            JUDGED: _harvest(root, params, engine, "judged", JUDGED, since, server),
            THUMBS: _harvest(root, params, engine, "thumbs", THUMBS, since, server),
        }


def export_for_people(root: Path, params: Params, file: Path, since: datetime | None = None) -> int:
    """Write mirrored interactions for people to label; say how many. They stay for a judge to harvest, too."""
    engine = open_database(root, params.operations, log.METADATA)
    found = [item for item, _ in log.interactions(engine, since=since) if harvest.comparable(item) is None]
    rows = harvest.labelling_rows(found)
    write_bytes(file, _lines(rows))
    return len(rows)


def _harvest(
    root: Path,
    params: Params,
    engine: Engine,
    kind: harvest.Kind,
    source: str,
    since: datetime | None,
    server: str | None,
) -> dict[str, Any]:
    claimed = harvest.claim(engine, kind, params.serving.harvest.most, since)
    if claimed is None:
        return {"batch": None, "counts": {"interactions": 0}}
    alone = _Alone(engine, claimed, params.serving.harvest.tries)
    found = alone.each(lambda ids: log.some_interactions(engine, ids), claimed.ids, str)
    if kind == "judged":
        rows, counts = _judged(root, params, [item for item, _ in found], alone)
    else:
        rows = harvest.thumb_rows(found, claimed.thumbs)
        counts = {"thumbs": len(rows)}
    if alone.count:
        counts["set_aside"] = alone.count
    batch = _ingest(root, params, source, rows, server) if rows else ""
    harvest.settle(engine, claimed, batch)
    return {"batch": batch or None, "counts": {"interactions": len(found), **counts}}


class _Alone:
    """Work on many at once; after too many failures on each alone, setting aside what fails while others do not."""

    def __init__(self, engine: Engine, claimed: harvest.Claim, tries: int) -> None:
        self._engine, self._claimed, self._tries = engine, claimed, tries
        self.count = 0

    def each(self, work: Callable[[Sequence[T]], list[R]], items: Sequence[T], name: Callable[[T], str]) -> list[R]:
        """Apply the work to the items."""
        try:
            return work(items)
        except Exception:
            if harvest.failed_tries(self._engine, self._claimed) < self._tries:
                raise
        done: list[R] = []
        broken: dict[str, str] = {}
        for item in items:
            try:
                done += work([item])
            except Exception as error:  # kept with its reason, and counted
                broken[name(item)] = f"{type(error).__name__}: {error}"
                last = error
        if broken and not done and len(items) > 1:  # then it is no single interaction's fault
            raise last
        harvest.set_aside(self._engine, self._claimed, broken)
        self.count += len(broken)
        return done


@contextmanager
def _one_harvest(root: Path) -> Iterator[None]:
    """One harvest at a time in a workspace: a second would take the first's open claim for one that died."""
    lock = root / ".plumbline" / "harvest.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock, timeout=0).acquire()
    except Timeout:
        raise WorkspaceBusy(f"{root}: another harvest is under way here. Wait for it to end; it takes all.") from None
    with held:
        yield


def _judged(
    root: Path, params: Params, found: Sequence[Interaction], alone: _Alone
) -> tuple[list[harvest.Row], dict[str, int]]:
    reasons = [harvest.comparable(item) for item in found]
    fit = [item for item, why in zip(found, reasons, strict=True) if why is None]
    counts: dict[str, int] = {why: reasons.count(why) for why in sorted({why for why in reasons if why})}
    if not fit:
        return [], counts
    judge = _reliable_judge(root, params)

    def ask(items: Sequence[Interaction]) -> list[tuple[Interaction, Judgement | None]]:
        groups = [[item.answers[place].text for place in harvest.shown_order(item)] for item in items]
        verdicts = judge.judge([item.prompt for item in items], groups)
        return list(zip(items, verdicts.judgements, strict=True))

    asked = alone.each(ask, fit, lambda item: item.id)
    rubric = rubric_of(judge)
    named = {"name": judge.name, "digest": judge.digest, **({"rubric": rubric} if rubric else {})}
    items, judgements = [item for item, _ in asked], [judgement for _, judgement in asked]
    rows, more = harvest.judged_rows(items, judgements, named, params.serving.harvest.tie_margin)
    return rows, {**counts, **more}


def _reliable_judge(root: Path, params: Params) -> Judge:
    """The judge of params, measured on held-out pairs as for self-play."""
    from plumbline.tasks.models.loading import seed_everything
    from plumbline.tasks.training.rewards.judges.build import JudgeMeans, build_judge
    from plumbline.tasks.training.rewards.judges.reliability import calibrate, require_reliable
    from plumbline.tasks.training.rewards.scoring import RewardModel

    seed_everything(params.seed, params.threads)
    trusting = params.reference.trust_remote_code
    own = params.judge.kind == "reward_model" and params.judge.reward_model.path is None
    model = RewardModel.load(root / "models/reward", trust_remote_code=trusting) if own else None
    means = JudgeMeans(model, root / ".plumbline" / "work" / "harvest", trusting)
    judge = build_judge(params.judge, means)
    held_out = list(load_jsonl(root / "data/curated/validation.jsonl", CuratedPair))
    require_reliable(calibrate(judge, held_out, params.judge.calibration_pairs, params.seed), params.judge)
    return judge


def _ingest(root: Path, params: Params, source: str, rows: Sequence[harvest.Row], server: str | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "harvest.jsonl"
        write_bytes(file, _lines(rows))
        batches = ingest_feedback(root, source, [file])
    announce_batches(root, params, source, batches, {batches[0].digest: len(rows)}, server)
    return batches[0].path.relative_to(root).as_posix()


def _lines(rows: Sequence[harvest.Row]) -> bytes:
    return b"".join(orjson.dumps(row, option=orjson.OPT_SORT_KEYS) + b"\n" for row in rows)
