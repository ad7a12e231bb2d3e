"""A Mimi from nothing: how the small codec was trained. No part of the package."""
