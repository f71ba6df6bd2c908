"""Precision and recall of curation: copies that it finds, and sound pairs that it takes for copies or contradictions.

Two kinds of sets: copies with an edit, planted in several corpora (precision and recall of the merges), and sound sets
in which one thing varies that matters (the share that stays). The sample world and the public sets of `../shared/data`
are used when they are there.

    python -m benchmarks.curation_precision [--seeds 1 2] [--workspace DIR] [--json]
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.curation_sets import SOUND, plant, sound
from plumbline.data_contracts.records import Message, Origin, PreferencePair, load_jsonl
from plumbline.tasks.data.curation.curate import curate
from plumbline.tasks.data.curation.curated import Curated
from plumbline.tasks.params.curation import CurationParams, LengthLimitParams, SplitParams

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PUBLIC = ("hh_harmless_test", "ukp_convarg_pairs", "llmbar_pairs")
PARAMS = CurationParams(
    split=SplitParams(on_empty="warn"), limits=LengthLimitParams(max_response=1_000_000, max_prompt=1_000_000)
)


def run(pairs: Sequence[PreferencePair]) -> Curated:
    """Curation with the default matching and no limit on length."""
    return curate(pairs, PARAMS, 0)


def stays(pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """The share of sound pairs that stay, and why the others went."""
    report = run(pairs).report
    return {"pairs": len(pairs), "stay": report["accepted"] / len(pairs), "reasons": report["reasons"]}


def found(pairs: Sequence[PreferencePair], seed: int) -> dict[str, Any]:
    """Precision and recall of merging planted copies; what was merged before they were planted does not count."""
    copies = plant(pairs, seed)
    before = {row.record_id: row.into for row in run(pairs).merged}
    merged = [row for row in run([*pairs, *(copy for _, copy in copies)]).merged if row.record_id not in before]
    names = {copy.id: kind for kind, copy in copies}
    original = {copy.id: copy.id.rpartition(" copy ")[0] for _, copy in copies}
    home = {name: {one, before.get(one)} for name, one in original.items()}
    right = [row for row in merged if row.into in home.get(row.record_id, ())]
    kinds, hit = Counter(names.values()), Counter(names[row.record_id] for row in merged if row.record_id in names)
    return {
        "pairs": len(pairs),
        "planted": len(copies),
        "precision": len(right) / len(merged) if merged else None,
        "recall": sum(hit.values()) / len(copies) if copies else None,
        "by_edit": {kind: hit[kind] / kinds[kind] for kind in sorted(kinds)},
    }


def public(name: str) -> list[PreferencePair]:
    """A public set of pairs; none if it is not there."""
    path = DATA / f"{name}.jsonl.gz"
    if not path.exists():
        return []
    rows = []
    with gzip.open(path) as file:
        for line, text in enumerate(file, start=1):
            row = json.loads(text)
            sides = (row["response_a"], row["response_b"])
            chosen, rejected = sides if row["label"] == "a" else sides[::-1]
            prompt = (Message(role="user", content=row["prompt"]),)
            origin = Origin(file=name, line=line)
            rows.append(
                PreferencePair(
                    id=row["id"], prompt=prompt, chosen=chosen, rejected=rejected, source=name, origin=origin
                )
            )
    return rows


def measure(seeds: Sequence[int], workspace: Path | None) -> dict[str, Any]:
    """All figures, by set and seed."""
    corpora = {f"sound: {kind}": sound(kind, 99, 30) for kind in SOUND} | {name: public(name) for name in PUBLIC}
    if workspace is not None:
        corpora["workspace"] = list(load_jsonl(workspace / "data/validated/accepted.jsonl", PreferencePair))
    return {
        "sound": {kind: [stays(sound(kind, seed)) for seed in seeds] for kind in SOUND},
        "all sound sets": [stays([row for kind in SOUND for row in sound(kind, seed)]) for seed in seeds],
        "one passage": [stays([row for kind in SOUND for row in sound(kind, seed, 1)]) for seed in seeds],
        "planted": {name: [found(pairs, seed) for seed in seeds] for name, pairs in corpora.items() if pairs},
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--workspace", type=Path, help="a workspace with validated feedback to plant copies in")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    figures = measure(chosen.seeds, chosen.workspace)
    if chosen.json:
        print(json.dumps(figures))
        return
    for kind, rows in figures["sound"].items():
        print(
            f"{kind:28} {' '.join(_share(row['stay']) for row in rows)} of {rows[0]['pairs']} stay {rows[0]['reasons']}"
        )
    for name in ("all sound sets", "one passage"):
        print(f"{name:28} {' '.join(_share(row['stay']) for row in figures[name])}")
    for name, rows in figures["planted"].items():
        for row in rows:
            edits = {kind: round(value, 2) for kind, value in row["by_edit"].items()}
            shares = f"precision {_share(row['precision'])} recall {_share(row['recall'])}"
            print(f"{name:34} planted {row['planted']:5} {shares} {edits}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
