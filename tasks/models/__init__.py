"""The shared ground of models: loading, chat template, token log-probabilities, sampling."""
