"""Verb: make a version that was just registered the first champion, if there was none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plumbline.tasks.operations.promote_model import Promotion, had_champion, promote_first
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.register_model import Registered


@dataclass(frozen=True, slots=True)
class Settled(Registered):
    """A registered version, and the outcome of making it champion.

    `first` is None if there was a champion, or the version was rejected.
    """

    first: Promotion | None = None


def settle_first_champion(root: Path, params: Params, registered: Registered) -> Settled:
    """Make a version that passed its gate champion, where there never was one and it passes the gates of that alias.

    Safe to repeat: a kill between registration and this leaves a candidate, which the same results take up again.
    """
    first = promote_first(root, params, registered.model_uri) if registered.passed else None
    aliases = list(registered.alias_uris)
    if first is not None and first.promoted:
        aliases.append(f"models:/{params.registry.model_name}@{first.alias}")
    return Settled(registered.model_uri, aliases, registered.passed, registered.stages, first)


def settled_before(root: Path, params: Params, registered: Registered) -> Settled | None:
    """Return the result of `settle_first_champion` if it has nothing to do; None if a first champion is to be tried."""
    if registered.passed and not had_champion(root, params):
        return None
    return Settled(registered.model_uri, registered.alias_uris, registered.passed, registered.stages)
