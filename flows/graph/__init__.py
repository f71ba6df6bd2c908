"""The graph of stages over a workspace, and the params that it runs with."""
