"""The result of re-hashing one copy of one object: the unit of every audit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HashCheck:
    """One copy of one object: the hash it should have and the one its bytes have.

    `name` is a path in the workspace or in the model's artifacts; `kind` says what it is ("data",
    "model", "listing", "text", "commit" …); `where` says which copy ("cache", "remote",
    "workspace", "mlflow", "git"). `found` is None for a missing object.
    """

    name: str
    kind: str
    hash: str
    where: str
    found: str | None

    @property
    def ok(self) -> bool:
        """True if the bytes are those that were recorded."""
        return self.found == self.hash

    def problem(self) -> str:
        """The difference in words, for a check that is not ok."""
        if self.found is None:
            return f"{self.name}: missing in {self.where}, expected {self.hash}."
        return f"{self.name}: changed in {self.where}, expected {self.hash}, found {self.found}."
