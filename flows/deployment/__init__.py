"""Deployments, schedules, triggers, and the processes that serve them."""
