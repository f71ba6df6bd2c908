"""Params: every section typed, documented and validated, the typed whole, and the file they live in."""
