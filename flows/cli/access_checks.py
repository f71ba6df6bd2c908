"""Checks of a workspace from outside: files with credentials, and services that answer without."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx

from plumbline.flows.cli.services import planned
from plumbline.tasks.access.requests import PROOF_PATH
from plumbline.tasks.operations.intake.tokens import token_file
from plumbline.tasks.operations.services.credentials import credentials_file
from plumbline.tasks.operations.services.plan import services_folder
from plumbline.tasks.params.whole import Params

_STRANGE_HOST = "rebound.example"
_STRANGE_ORIGIN = "http://page.example"
_ANSWER_S = 5.0


def public_files(root: Path, params: Params) -> list[str]:
    """Files with credentials that another user may read, or whose folder lets others in; with their modes."""
    from plumbline.tasks.operations.serve_model import key_file

    files = [credentials_file(services_folder(root)), token_file(root), key_file(root)]
    given = params.serving.token
    if given is not None and not given.startswith("$"):
        files.append(root / given)
    owner = root.stat().st_uid
    return [note for path in files if (note := _public(path, owner))]


def open_services(root: Path, params: Params) -> list[str]:
    """Running services that are open to others: without credentials, by a foreign Host, to a page of another origin."""
    found = []
    for service in planned(root, params).services:
        if service.port is not None:
            base, _, _ = service.url.partition(f":{service.port}")
            found += _openings(service.name, f"{base}:{service.port}", _PRIVATE[service.name])
    return found


_PRIVATE = {
    "prefect": ("GET", "/api/admin/version"),
    "mlflow": ("GET", "/api/2.0/mlflow/registered-models/search?max_results=1"),
    "intake": ("POST", "/v1/feedback/human_pairs"),
}
"""By service: a request that needs credentials and changes nothing."""


def _public(path: Path, owner: int) -> str | None:
    try:
        file, folder = path.stat(), path.parent.stat()
    except OSError:
        return None
    ill = [
        f"{item} has mode {stat.S_IMODE(found.st_mode):o} and belongs to user {found.st_uid}"
        for item, found, closed in ((path, file, 0o077), (path.parent, folder, 0o022))
        if stat.S_IMODE(found.st_mode) & closed or found.st_uid != owner
    ]
    return ", ".join(ill) or None


def _openings(name: str, base: str, private: tuple[str, str]) -> list[str]:
    method, path = private
    asked: tuple[tuple[str, tuple[str, str], dict[str, str], tuple[int, ...]], ...] = (
        ("answers without credentials", (method, path), {}, (401,)),
        ("answers to a strange Host", ("GET", PROOF_PATH), {"Host": _STRANGE_HOST}, (400,)),
        ("answers a page of another origin", ("GET", PROOF_PATH), {"Origin": _STRANGE_ORIGIN}, (403,)),
    )
    with httpx.Client(base_url=base, timeout=_ANSWER_S, trust_env=False) as client:
        try:
            return [
                f"{name} {opening} ({base})"
                for opening, (verb, where), headers, expected in asked
                if client.request(verb, where, headers=headers).status_code not in expected
            ]
        except httpx.HTTPError:  # it does not run: `status` says so
            return []
