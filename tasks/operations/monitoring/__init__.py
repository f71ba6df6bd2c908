"""Watching: sequential tests on recent traffic and labels, drift, and what they find."""
