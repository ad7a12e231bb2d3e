"""Training a Mimi from random weights, as the small codec was trained. Not part of the package."""
