"""Feedback in: readers, contract, curation, the sample world."""
