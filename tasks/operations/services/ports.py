"""Ports in use, and by whom: asked before anything is started."""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence

import psutil

from plumbline.data_contracts.errors import UsageError
from plumbline.data_contracts.secrets import mask
from plumbline.tasks.operations.services.health import asks_for_credentials, server_version
from plumbline.tasks.operations.services.plan import HOST, Service


def refuse_taken_ports(services: Sequence[Service], ours: Collection[int]) -> None:
    """Raise `UsageError` for every port that a process other than ours (pids) holds, saying who and what to change."""
    lines = [_refusal(service) for service in services if service.port and not _is_free(service.port, ours)]
    if lines:
        raise UsageError("\n".join(lines))


def _is_free(port: int, ours: Collection[int]) -> bool:
    with socket.socket() as probe:
        # as servers do, or a connection of the last run in TIME_WAIT would count as a holder
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return any(pid in ours for pid in _listeners(port))
    return True


def _listeners(port: int) -> list[int | None]:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS shows them to root alone
        return []
    return [item.pid for item in connections if item.status == psutil.CONN_LISTEN and item.laddr[1:] == (port,)]


def _refusal(service: Service) -> str:
    holders = ", ".join(sorted({_describe(pid) for pid in _listeners(service.port or 0)})) or "another user's process"
    api_url = f"http://{HOST}:{service.port}/api"
    if (found := server_version(api_url)) is not None:
        holders += f"; it answers as a Prefect server {found}, not one of this workspace"
    elif asks_for_credentials(f"{api_url}/admin/version"):
        holders += "; it asks for credentials, and is no server of this workspace"
    return (
        f"{service.port_key}: expected port {service.port} on {HOST} to be free for {service.name}, found it in use by "
        f"{holders}. End that, or choose another port: `plumbline up --set {service.port_key}=PORT`. Nothing "
        f"was started."
    )


def _describe(pid: int | None) -> str:
    if pid is None:
        return "another user's process"
    try:
        process = psutil.Process(pid)
        command = mask(" ".join(process.cmdline()))[:120] or process.name()
        return f"pid {pid} of {process.username()} ({command})"
    except psutil.Error:
        return f"pid {pid}"
