"""Serving: champion, shadow, canary, and the log of what was answered."""
