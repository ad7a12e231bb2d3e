"""Recordings and what is known about them, from files to training batches."""
