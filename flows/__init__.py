"""What happens, in order: flows, their params and the command line."""
