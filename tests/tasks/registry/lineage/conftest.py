"""One made-up version, whose texts are hostile."""

from __future__ import annotations

from typing import Any

import pytest

from plumbline.tasks.registry.lineage.build import DescribedVersion

EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


def stage(out: str, *deps: str) -> dict[str, Any]:
    return {
        "cmd": "x",
        "params": {"params.yaml": {"seed": 1}},
        "deps": {dep: {"md5": md5(dep)} for dep in deps},
        "outs": {out: {"md5": md5(out)}},
        "artifact": {"digest": "c" * 64, "contract": "x", "contract_version": 1, "parents": {}},
    }


def md5(path: str) -> str:
    return f"{abs(hash(path)):032x}"[:32] + ".dir"


@pytest.fixture
def manifest() -> dict[str, Any]:
    """Two stacked methods, a held-out judge, forty annotators of whom one is hostile, a hostile diff."""
    people = {EVIL: 3, **{f"person-{number}": 1 for number in range(40)}}
    roles = {
        "policy": "models/policy",
        "reference": "models/reference",
        "base": "models/base",
        "reward": "models/reward",
        "curated": "data/curated",
        "validated": "data/validated",
        "raw": "data/raw",
        "evaluation": "reports/evaluation",
        "gate": "reports/gate",
    }
    return {
        "model": {"name": "assistant", "key": "k"},
        "git": {"commit": "d" * 40, "dirty": True, "diff": f"+{EVIL}"},
        "program": {"version": "0.1.0", "git_commit": "e" * 40, "source_sha256": "f" * 64},
        "environment": {"python": "3.11", "platform": "L", "packages": {"torch": "2.13.0+cpu"}, "sha256": "a" * 64},
        "texts": {"params.yaml": {"text": EVIL, "sha256": "b" * 64}},
        "stages": {
            "validate": stage("data/validated", "data/raw"),
            "curate": stage("data/curated", "data/validated"),
            "base": stage("models/base"),
            "reference": stage("models/reference", "models/base"),
            "reward": stage("models/reward", "models/base", "data/curated"),
            "finetune": stage("models/policy", "models/reference", "models/reward", "data/curated"),
            "evaluate": stage("reports/evaluation", "models/policy", "models/reward", "data/curated"),
            "gate": stage("reports/gate", "reports/evaluation"),
        },
        "tracked": {"data/raw": {"md5": md5("data/raw"), "file": "data/raw.dvc"}},
        "raw_batches": [{"path": f"data/raw/human_pairs/{n:016x}.jsonl", "md5": f"{n:032x}"} for n in range(1, 4)],
        "objects": {role: {"path": path, "md5": md5(path), "digest": "c" * 64} for role, path in roles.items()},
        "suites": {"preference_pair": {"version": 1, "sha256": "9" * 64}},
        "accounts": {"curated": {"annotators": {"train": people}, "lines": {"train": {"all": 43}}, "batches": {}}},
        "judge_prompts": [{"name": "helpfulness", "version": 1, "digest": "ab" * 32, "used_by": ["finetune"]}],
        "counts": {"read": 50, "accepted": 43, "merged": 4, "quarantined": 3, "reasons": {"tie": 3}},
        "as_run": {
            "base": {"architecture": "Qwen3ForCausalLM"},
            "reward": {"held_out": {"seed": 3}},
            "finetune": {"method": "dpo+ppo", "stages": {"1-dpo": {"beta": 0.1}, "2-ppo": {"steps": 3}}},
        },
        "evaluation": {"win_rate": {"judge": {"value": 0.7, "low": 0.6, "high": 0.8}}},
        "gate": {"passed": True, "reasons": [{"name": "win", "passed": True, "text": "0.6 ≥ 0.5"}]},
        "flow_run_id": "flow-1",
        "trigger_event_id": "event-1",
        "files": {"model/model.safetensors": {"sha256": "7" * 64, "bytes": 8}},
    }


@pytest.fixture
def about() -> DescribedVersion:
    line = {"seq": 1, "alias": "champion", "version": "3", "previous": "2", "action": "promote", "actor": EVIL}
    line |= {"reason": "better", "at": "2026-01-01T00:00:00+00:00", "hash": "8" * 64, "evidence": {}}
    return DescribedVersion(
        model_uri="models:/assistant/3",
        number="3",
        manifest_sha256="6" * 64,
        aliases=("champion",),
        registered_at="2026-01-01T00:00:00+00:00",
        ledger=(line,),
        trigger={"kind": "batch", "subject": EVIL},
    )
