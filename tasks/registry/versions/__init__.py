"""A registered version: its manifest, its files, its card, and what MLflow shows of it."""
