"""A stage: its body, its process, and who watches it."""
