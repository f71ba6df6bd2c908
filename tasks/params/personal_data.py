"""Kinds of personal data that params may name, and what may be done with a record that holds some."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["email", "phone", "card", "iban", "ip", "secret"]
"""E-mail address, phone number, payment card, bank account, public IP address, API key or token."""

KINDS: tuple[Kind, ...] = get_args(Kind)

Handling = Literal["keep", "mask", "quarantine"]
"""Look for nothing; put placeholders in place of values; set the record aside."""
