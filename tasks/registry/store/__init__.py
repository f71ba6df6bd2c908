"""MLflow: its client, its tables, its runs and its server."""
