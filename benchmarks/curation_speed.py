"""Speed of validation and curation: pairs of about 1.5 kB, from JSONL.gz to the splits, in one process.

The rows hold near duplicates (5 %), exact duplicates (2 %), fills of templates (10 %), leaked labels (1 %), rows that
are no feedback (1 %) and conversations (10 %). Each peer reads the same file in a process of its own: polars removes
exact duplicates, rensa and Daft near duplicates of the prompts. A peer that is not installed is left out, with a line.

    python -m benchmarks.curation_speed [--rows 100000] [--seed 1] [--folder DIR] [--peers polars rensa daft]
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson

_PLAIN = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had "
    "an they which one you were all her she there would their we him been has when who will no more if "
    "out so said what up its about into than them can only other time new some could these two may first "
    "then do any my now such like our over man me even most made after also did many before must through "
    "years where much your way well down should because each just those people how too little state good "
    "very make world still see own work here better best choose prefer answer "
)
_LETTERS = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))


def vocabulary(size: int = 20_000) -> list[str]:
    """Common English words, then made-up ones of 4 to 10 letters, by falling frequency."""
    draw, common = np.random.default_rng(7), _PLAIN.split()
    lengths = draw.integers(4, 11, size)
    return [*common, *("".join(draw.choice(_LETTERS, length)) for length in lengths[len(common) :])]


class Writer:
    """Texts whose words follow Zipf's law."""

    def __init__(self, seed: int) -> None:
        self._words = np.array(vocabulary(), dtype=object)
        weights = 1.0 / np.arange(2, len(self._words) + 2)
        self._cumulated = np.cumsum(weights) / weights.sum()
        self._draw = np.random.default_rng(seed)

    def text(self, words: int) -> str:
        """A text of sentences and paragraphs."""
        found = self._words[np.searchsorted(self._cumulated, self._draw.random(words))].tolist()
        for place in range(11, words, 12):
            found[place] += ".\n\n" if place % 60 == 59 else "." if place % 24 else ", “so to say”,"
        return str(" ".join(found)).capitalize() + "."


def rows(count: int, seed: int) -> Iterator[bytes]:
    """The JSON lines of `count` rows of feedback."""
    writer, draw = Writer(seed), Random(seed)
    templates = [writer.text(40) for _ in range(50)]
    recent: list[dict[str, Any]] = []
    for number in range(count):
        kind = draw.random()
        row: dict[str, Any] = {
            "id": f"row-{seed}-{number}",
            "prompt": writer.text(45) if kind > 0.1 else f"{draw.choice(templates)} {writer.text(4)}",
            "response_a": writer.text(85),
            "response_b": writer.text(85),
            "label": draw.choice("ab"),
            "annotator": f"person {draw.randrange(500)}",
            "timestamp": f"2026-03-{1 + number % 28:02d}T09:30:00Z",
        }
        if recent and 0.1 < kind < 0.12:
            row = draw.choice(recent) | {name: row[name] for name in ("id", "annotator", "timestamp")}
        elif recent and 0.12 < kind < 0.17:
            row = draw.choice(recent) | {name: row[name] for name in ("id", "annotator", "timestamp")}
            row["prompt"] = _edited(row["prompt"], draw)
        elif 0.2 < kind < 0.21:
            row["response_a"] += draw.choice([" Response A is better.", " [chosen]"])
        elif 0.21 < kind < 0.22:
            row |= draw.choice([{"label": "tie"}, {"response_b": "  "}, {"timestamp": "soon"}, {"label": None}])
        elif 0.3 < kind < 0.4:
            turns = ("user", writer.text(12)), ("assistant", writer.text(20)), ("user", row["prompt"])
            row["prompt"] = [{"role": role, "content": text} for role, text in turns]
        if isinstance(row["prompt"], str):
            recent[draw.randrange(1000) : 0 if len(recent) < 1000 else 1000] = [row]
            del recent[1000:]
        yield orjson.dumps(row) + b"\n"


def _edited(text: str, draw: Random) -> str:
    words = text.split(" ")
    place = draw.randrange(1, len(words))
    return " ".join([*words[:place], words[place - 1], *words[place:]])


def write(path: Path, count: int, seed: int) -> int:
    """Write the rows as JSONL.gz; returns the bytes before compression."""
    size = 0
    with gzip.open(path, "wb", compresslevel=1) as file:
        for row in rows(count, seed):
            size += file.write(row)
    return size


def ours(file: Path, folder: Path) -> dict[str, Any]:
    """Validate and curate a file; returns the counts and the seconds of both."""
    from plumbline.data_contracts.artifact import writing
    from plumbline.tasks.data.curate_preferences import curate_preferences
    from plumbline.tasks.data.feedback.validate import validate
    from plumbline.tasks.params.curation import CurationParams
    from plumbline.tasks.params.feedback import FeedbackParams
    from plumbline.tasks.pipeline.stage import StageContext

    begin = time.perf_counter()
    with writing(folder / "validated", contract="validated_feedback", version=1, parents={}) as draft:
        draft.facts = validate([("human_pairs", file.name, file)], FeedbackParams(), draft.path)
    validated = time.perf_counter()
    with writing(folder / "curated", contract="curated_preferences", version=1, parents={}) as draft:
        work = folder / "work"
        work.mkdir(exist_ok=True)
        context = StageContext(folder, draft.path, work, {"validated": folder / "validated"})
        draft.facts = curate_preferences(context, seed=1, curation=CurationParams())
    seconds = {"validate": validated - begin, "curate": time.perf_counter() - validated}
    return {"facts": draft.facts, "seconds": seconds, "digests": digests(folder)}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of both artifacts, as their manifests say."""
    manifests = {name: json.loads((folder / name / "manifest.json").read_text()) for name in ("validated", "curated")}
    return {
        f"{name}/{file}": str(entry["sha256"])[:16]
        for name, manifest in manifests.items()
        for file, entry in manifest["files"].items()
    }


def with_polars(file: Path, folder: Path) -> dict[str, Any]:
    """Exact duplicates by polars."""
    import polars as pl

    with gzip.open(file) as lines:
        read = pl.read_ndjson(lines.read(), schema_overrides={"prompt": pl.String}, ignore_errors=True)
    kept = read.unique(("prompt", "response_a", "response_b"))
    kept.write_ndjson(folder / "polars.jsonl")
    return {"kept": len(kept)}


def with_rensa(file: Path, folder: Path) -> dict[str, Any]:
    """Near duplicates of the prompts by rensa."""
    from rensa import RMinHash, RMinHashDeduplicator

    found = RMinHashDeduplicator(threshold=0.7, num_perm=125, use_lsh=True, num_bands=25)
    kept = 0
    with gzip.open(file) as lines:
        for number, line in enumerate(lines):
            words = str(orjson.loads(line)["prompt"]).split()
            signature = RMinHash(num_perm=125, seed=42)
            signature.update([" ".join(two) for two in pairwise(words)])
            kept += found.add(str(number), signature)
    return {"kept": kept}


def with_daft(file: Path, folder: Path) -> dict[str, Any]:
    """MinHash signatures of the prompts by Daft."""
    import daft

    with gzip.open(file) as lines:
        prompts = [str(orjson.loads(line)["prompt"]) for line in lines]
    signatures = daft.from_pydict({"prompt": prompts}).select(daft.col("prompt").minhash(125, 2).alias("signature"))
    return {"kept": len(signatures.collect())}


RUNS: Mapping[str, Any] = {"ours": ours, "polars": with_polars, "rensa": with_rensa, "daft": with_daft}


def measured(name: str, file: Path, folder: Path) -> dict[str, Any]:
    """One run in a process of its own: wall and CPU seconds, start and imports included, and peak memory in MB."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.curation_speed", "--run", name, str(file), "--folder", str(folder)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), **json.loads(told)}


def _peak() -> int:
    """The largest memory of this process and the largest of its children together, in MB."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) // 1024


def compare(count: int, seed: int, folder: Path, peers: list[str]) -> dict[str, Any]:
    """Ours and its peers over one file."""
    file = folder / f"pairs-{seed}-{count}.jsonl.gz"
    size = (file.exists() and -1) or write(file, count, seed)
    found: dict[str, Any] = {"rows": count, "bytes_a_row": round(size / count)}
    for name in ("ours", *peers):
        module = {"ours": "plumbline"}.get(name, name)
        if importlib.util.find_spec(module) is None:
            found[name] = "not installed"
            continue
        with tempfile.TemporaryDirectory(dir=folder) as work:
            run = measured(name, file, Path(work))
        found[name] = {"records_a_second": round(count / run["wall_s"]), **run}
    return found


def main() -> None:
    """Measure, or be the process of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--peers", nargs="*", default=["polars", "rensa", "daft"])
    parser.add_argument("--run", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        found = RUNS[args.run[0]](Path(args.run[1]), args.folder)
        print(json.dumps({"peak_mb": _peak(), **found}))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(args.rows, args.seed, args.folder or Path(folder), args.peers), indent=2))


if __name__ == "__main__":
    main()
