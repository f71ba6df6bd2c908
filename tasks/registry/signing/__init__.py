"""Keys, who is trusted with them, and signatures of files."""
