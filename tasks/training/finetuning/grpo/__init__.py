"""Group relative policy optimisation: TRL's trainer, with judges that rank and gains that reward."""
