"""Asking who answers at an address, before any credential is sent there."""

from __future__ import annotations

import hmac
import http.client
import json
import secrets
import urllib.error
import urllib.request  # every command in a workspace with services asks first: importing httpx would cost each 0.1 s
from typing import Literal
from urllib.parse import urlsplit

from plumbline.tasks.access.requests import PROOF_PATH, proof

Standing = Literal["own", "foreign", "silent"]
_ANSWER_S = 30.0  # a closed port refuses at once; a server of ours may be busy, and slow is not absent
_MOST_BYTES = 4096


def who_answers(url: str, secret: str | None) -> Standing:
    """own: it proves that it holds the secret; foreign: something else answers; silent: nothing does, or not in time.

    `url` is any address of the server, with its port. Asked directly, whatever proxy the environment names.
    """
    parts, nonce = urlsplit(url), secrets.token_hex(32)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())
    try:
        with opener.open(f"{parts.scheme}://{parts.netloc}{PROOF_PATH}?nonce={nonce}", timeout=_ANSWER_S) as answer:
            told = json.loads(answer.read(_MOST_BYTES))["proof"]
    except urllib.error.HTTPError:
        return "foreign"
    except (ValueError, KeyError, TypeError):
        return "foreign"
    except OSError:  # refused, reset, timed out
        return "silent"
    except http.client.HTTPException:
        return "foreign"
    expected = proof(secret, nonce, parts.port or 80) if secret else ""
    return "own" if expected and hmac.compare_digest(str(told), expected) else "foreign"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """A server of ours never redirects; another one must not choose whom we ask."""
        return None
