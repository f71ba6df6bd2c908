"""Services on loopback: what is started, supervised and asked for its health."""
