"""Shared ground of all that listens or asks on this machine: secrets in private files, and checks of requests."""
