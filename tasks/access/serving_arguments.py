"""The command line that the servers of `plumbline up` share."""

from __future__ import annotations

import argparse


def server_arguments(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """host, port, the lists allowed_host and allowed_origin, and no_services."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", required=True, help="the address to listen on")
    parser.add_argument("--port", type=int, required=True, help="the port to listen on")
    parser.add_argument("--allowed-host", action="append", default=[], help="a Host header beside loopback's")
    parser.add_argument("--allowed-origin", action="append", default=[], help="an origin beside its own")
    parser.add_argument("--no-services", action="store_true", help="only API and pages; another process schedules")
    return parser.parse_args(argv)
