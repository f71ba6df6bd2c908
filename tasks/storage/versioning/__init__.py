"""DVC and git: the only DVC imports."""
