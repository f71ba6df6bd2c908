"""Leak cleaning, de-duplication, contradictions, length limits and the split by cluster."""
