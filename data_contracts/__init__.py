"""Records, artifacts, contracts and errors: the ground that every other package stands on."""
