"""Plumbline: raw human feedback in, an aligned language model out that can be audited."""
