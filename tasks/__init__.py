"""Verbs (`tasks/*.py`: Prefect tasks) and nouns (`tasks/<noun>/`: plain Python)."""
