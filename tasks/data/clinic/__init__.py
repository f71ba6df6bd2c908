"""Quality of labels: agreement, annotators, the ceiling of accuracy, what leaks, and the pairs to look at again."""
