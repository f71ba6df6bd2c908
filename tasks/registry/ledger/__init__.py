"""The promotion ledger: a chain of signed lines of who moved which alias, and its head."""
