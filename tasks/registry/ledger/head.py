"""The signed head of the promotion ledger: number and hash of the last line that was carried out.

It is a tag of the registered model, kept apart from the ledger itself, so that lines cut from the end are missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from plumbline.tasks.registry.signing.key_files import VerifyingKey
from plumbline.tasks.registry.signing.keys import signing_key
from plumbline.tasks.registry.store.client import Store, refusals

HEAD_TAG = "plumbline.ledger_head"


@dataclass(frozen=True, slots=True)
class Head:
    """The head as it was read."""

    seq: int
    hash: str
    genuine: bool


def write_head(store: Store, name: str, seq: int, digest: str) -> None:
    """Sign the head and put it into the tag."""
    key = signing_key(store.root, store.params)
    head = {"seq": seq, "hash": digest, "signature": key.sign(_head_bytes(name, seq, digest))}
    with refusals(f"signed head of the ledger of {name}"):
        store.client.set_registered_model_tag(name, HEAD_TAG, orjson.dumps(head).decode())


def read_head(text: str | None, name: str, key: VerifyingKey) -> Head | None:
    """The head in a tag's text; None if there is no tag."""
    if text is None:
        return None
    try:
        head = orjson.loads(text)
        seq, digest, signature = int(head["seq"]), str(head["hash"]), str(head["signature"])
    except (ValueError, KeyError, TypeError):
        return Head(0, "", genuine=False)
    return Head(seq, digest, key.accepts(_head_bytes(name, seq, digest), signature))


def head_seq(tags: Mapping[str, str]) -> int:
    """Number of the last line that was carried out; `verify_chain` says whether the head is genuine."""
    try:
        return int(orjson.loads(tags[HEAD_TAG])["seq"])
    except (ValueError, KeyError, TypeError):
        return 0


def head_problems(rows: Sequence[Mapping[str, Any]], head: Head | None, name: str) -> list[str]:
    """Problems of the signed head: it may lag by the lines of one operation, which a crash leaves, and no more."""
    again = "`plumbline history --anchor --reason WHY` writes it anew, on record."
    if head is not None and (not head.genuine or head.seq < 1):
        return [f"the signed head of the ledger (tag {HEAD_TAG} of {name}) is forged or unreadable. {again}"]
    seq = 0 if head is None else head.seq
    if head is not None and seq > len(rows):
        return [f"ledger line {len(rows) + 1}: missing: the signed head says {seq} lines, found {len(rows)}."]
    if head is not None and rows[seq - 1]["hash"] != head.hash:
        return [f"ledger line {seq}: it is not the line that the signed head names."]
    if len({(row["at"], row["action"]) for row in rows[seq:]}) > 1:
        stops = f"stops at line {seq} of {len(rows)}: removed or put back"
        return [f"the signed head (tag {HEAD_TAG} of {name}) {stops}. {again}"]
    return []


def _head_bytes(name: str, seq: int, digest: str) -> bytes:
    facts = {"purpose": "plumbline.ledger_head", "model": name, "seq": seq, "hash": digest}
    return orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)
