"""The loop in five wings: data, training, evaluation, registry, operations; verbs are files, nouns are folders."""
