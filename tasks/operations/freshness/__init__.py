"""Fresh data: an outbox that loses nothing, and the rules by which it starts a run."""
