"""Storage: DVC and git, and the operations database."""
