"""Write the sample world: dirty feedback, demonstrations, and the record of what was planted.

1. Draw distinct requests; two of one template differ in at least two slots (no near duplicates by template).
2. Write two responses for each, and let one annotator label them through noise.
3. Add defective rows and shuffle; ids and timestamps follow the order of the file.
4. Write `feedback/human_pairs.jsonl`, `demonstrations.jsonl` and `planted.json`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import orjson

from plumbline.data_contracts.artifact import write_json
from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.data.sample_world import annotators, defects
from plumbline.tasks.data.sample_world.completions import pick_writer, write
from plumbline.tasks.data.sample_world.defects import Row
from plumbline.tasks.data.sample_world.gold import gold_reward
from plumbline.tasks.data.sample_world.requests import Request, draw, draw_family
from plumbline.tasks.params.sample_world import SampleWorldParams

FEEDBACK = "feedback/human_pairs.jsonl"
DEMONSTRATIONS = "demonstrations.jsonl"
PLANTED = "planted.json"

_EPOCH = datetime(2025, 1, 6, 8, tzinfo=UTC)
_MOST_DRAWS = 1000
_MOST_REWRITES = 20


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the feedback file before ids are given: a clean row, or a defect made from one."""

    row: Row
    kind: str | None = None
    of: int | None = None


def generate(params: SampleWorldParams, seed: int, folder: Path) -> dict[str, Any]:
    """Write the world into `folder` and return counts for the manifest. The same seed gives the same bytes."""
    requests, taken = _draw_distinct(params.pairs, Random(f"{seed}/requests"))
    rows = [_label(request, params, Random(f"{seed}/pair/{n}")) for n, request in enumerate(requests)]
    lines = _plant(rows, params, Random(f"{seed}/defects"))
    (folder / FEEDBACK).parent.mkdir(parents=True, exist_ok=True)
    planted = _write_feedback(folder / FEEDBACK, lines, Random(f"{seed}/order"))
    _write_demonstrations(folder / DEMONSTRATIONS, params, taken, Random(f"{seed}/demonstrations"))
    write_json(folder / PLANTED, {"file": FEEDBACK, "seed": seed, "lines": len(lines), "planted": planted})
    return {
        "lines": len(lines),
        "clean_pairs": len(rows),
        "demonstrations": params.demonstrations,
        "planted": {kind: len(records) for kind, records in planted.items()},
        "families": dict(sorted(Counter(request.family for request in requests).items())),
    }


def _draw_distinct(count: int, rng: Random) -> tuple[list[Request], set[tuple[str, ...]]]:
    """Draw `count` requests of which no two share a template and all but one slot; also the keys they occupy."""
    taken: set[tuple[str, ...]] = set()
    requests: list[Request] = []
    for _ in range(count):
        request = _draw_free(rng, taken)
        taken.update(request.neighbours())
        requests.append(request)
    return requests, taken


def _draw_free(rng: Random, taken: set[tuple[str, ...]]) -> Request:
    """Draw a request that differs in at least two slots from each that occupies keys of `taken`."""
    family = draw_family(rng)
    for _ in range(_MOST_DRAWS):
        request = draw(family, rng)
        if taken.isdisjoint(request.neighbours()):
            return request
    raise ParamsError(
        f"sample_world.pairs: expected a number of prompts that the templates can keep apart, found too many "
        f"({_MOST_DRAWS} draws of family {family!r} in a row were too close to earlier ones). Choose a smaller number."
    )


def _label(request: Request, params: SampleWorldParams, rng: Random) -> Row:
    """Two different responses of independent writers, ordered by one annotator's label."""
    prompt = request.prompt()
    first = write(request, pick_writer(rng, params), rng)
    second = first
    for _ in range(_MOST_REWRITES):
        second = write(request, pick_writer(rng, params), rng)
        if second != first:
            break
    annotator = rng.choice(list(annotators.TEMPERATURES))
    golds = gold_reward(prompt, first), gold_reward(prompt, second)
    if not annotators.judge(*golds, annotator, params.noise, rng):
        first, second = second, first
    return {
        "prompt": [message.model_dump() for message in prompt],
        "chosen": [{"role": "assistant", "content": first}],
        "rejected": [{"role": "assistant", "content": second}],
        "annotator": annotator,
        "source": "support_desk",
    }


def _plant(rows: list[Row], params: SampleWorldParams, rng: Random) -> list[_Line]:
    """Clean rows and defective ones in the order of the file. A row takes part in at most one defect."""
    counts = {kind: round(rate * len(rows)) for kind, rate in params.defects.model_dump().items()}
    victims = iter(rng.sample(range(len(rows)), min(len(rows), sum(counts.values()))))
    lines = [_Line(row) for row in rows]
    for kind, count in counts.items():
        for _ in range(count):
            victim = next(victims, None)
            if victim is None:
                raise ParamsError("sample_world.defects: the rates add up to more than 1. Lower them.")
            if kind in defects.REPEATING:
                lines.append(_Line(rows[victim], kind, victim))
            else:
                lines[victim] = _Line(rows[victim], kind)
    order = rng.sample(range(len(lines)), len(lines))
    position = {old: new for new, old in enumerate(order)}
    return [_Line(one.row, one.kind, None if one.of is None else position[one.of]) for one in (lines[o] for o in order)]


def _write_feedback(path: Path, lines: list[_Line], rng: Random) -> dict[str, list[dict[str, Any]]]:
    """Write the file and return, by kind, each planted defect with its line (1-based), id and details."""
    planted: dict[str, list[dict[str, Any]]] = {kind: [] for kind in (*defects.REPEATING, *defects.SPOILING)}
    clock = _EPOCH
    with path.open("wb") as file:
        for number, line in enumerate(lines, start=1):
            clock += timedelta(seconds=rng.randrange(20, 400))
            row = {"id": _id(number), **line.row, "timestamp": clock.isoformat()}
            text = defects.dump_row(row)
            if line.kind is not None:
                make = defects.REPEATING.get(line.kind) or defects.SPOILING[line.kind]
                text, details = make(row, rng)
                if line.of is not None:
                    details = {**details, "of": _id(line.of + 1), "of_line": line.of + 1}
                planted[line.kind].append({"line": number, "id": _id(number), **details})
            file.write(text + b"\n")
    return planted


def _id(line: int) -> str:
    return f"hp-{line:06d}"


def _write_demonstrations(path: Path, params: SampleWorldParams, taken: set[tuple[str, ...]], rng: Random) -> None:
    """Conversations on other requests than the feedback's: each differs from all of them in two slots or more."""
    with path.open("wb") as file:
        for _ in range(params.demonstrations):
            request = _draw_free(rng, taken)
            turns = [message.model_dump() for message in request.prompt()]
            turns.append({"role": "assistant", "content": write(request, pick_writer(rng, params), rng)})
            file.write(orjson.dumps({"messages": turns}) + b"\n")
