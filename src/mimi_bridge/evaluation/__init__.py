"""What decoded speech is worth, measured."""
