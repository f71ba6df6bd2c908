"""Erasure: the texts to look for, every place that may hold them, and what is removed there."""
