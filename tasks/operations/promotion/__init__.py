"""Promotion: gates between versions, and what an override needs."""
