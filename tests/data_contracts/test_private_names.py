"""A private name that a library no longer has fails where it is imported, with the version to install."""

from __future__ import annotations

import pytest

from plumbline.data_contracts.errors import OperationsError
from plumbline.data_contracts.private_names import private_names, require_names


class Library:
    def _there(self) -> None: ...


def test_what_is_there_passes() -> None:
    require_names("pytest", Library, "_there")
    with private_names("pytest"):
        from pytest import Session  # noqa: F401


def test_a_method_that_is_gone_is_named_with_the_installed_version() -> None:
    with pytest.raises(
        OperationsError, match=rf"pytest {pytest.__version__}: .*Library has no _gone.*requirements\.lock"
    ):
        require_names("pytest", Library, "_there", "_gone")


@pytest.mark.parametrize("module", ["pytest._gone", "no_such_library"])
def test_a_module_that_is_gone_is_named(module: str) -> None:
    with pytest.raises(OperationsError, match="private names that Plumbline was tested with"), private_names("gone"):
        __import__(module)
