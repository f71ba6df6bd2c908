"""MLflow runs, model versions and lineage: the only MLflow imports."""
