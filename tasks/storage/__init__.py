"""What is kept: DVC and git, and the operations database."""
