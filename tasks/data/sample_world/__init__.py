"""A seeded world of support questions with a known gold reward."""
