"""Sources of human feedback: files in any known format become records of one contract."""
