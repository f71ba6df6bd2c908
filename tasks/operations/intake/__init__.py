"""Feedback that comes in by itself: a watched folder and an HTTP endpoint."""
