from __future__ import annotations

from typing import Any

import pytest

from plumbline.data_contracts.errors import RegistryError, SignatureError
from plumbline.tasks.registry.ledger.ledger import HEAD_TAG
from plumbline.tasks.registry.ledger.verified_aliases import VerifiedAliases


def test_an_alias_is_followed_only_where_ledger_and_mlflow_agree(registry: Any) -> None:
    registry.register("a")
    registry.register("b")
    vouched = VerifiedAliases(registry.ledger, registry.store)
    assert vouched.find("champion") == f"models:/{registry.name}/1"
    assert vouched.find("shadow") is None
    client = registry.store.client
    client.set_registered_model_alias(registry.name, "champion", "2")
    with pytest.raises(RegistryError, match=r"the ledger says version 1, MLflow says 2\. It is not followed"):
        vouched.find("champion")
    assert vouched.find("candidate") == f"models:/{registry.name}/2"
    client.set_registered_model_alias(registry.name, "champion", "1")
    assert vouched.find("champion") == f"models:/{registry.name}/1"


def test_nothing_is_followed_on_a_bad_ledger(registry: Any) -> None:
    registry.register("a")
    vouched = VerifiedAliases(registry.ledger, registry.store)
    vouched.find("champion")
    registry.store.client.set_registered_model_tag(registry.name, HEAD_TAG, "{}")
    with pytest.raises(SignatureError, match=r"forged or unreadable.* No alias can be followed"):
        vouched.find("champion")


def test_an_alias_that_the_ledger_does_not_keep_is_refused(registry: Any) -> None:
    registry.register("a")
    registry.store.client.set_registered_model_alias(registry.name, "mine", "1")
    with pytest.raises(RegistryError, match="the ledger keeps no such alias"):
        VerifiedAliases(registry.ledger, registry.store).find("mine")
