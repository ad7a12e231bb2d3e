"""Metrics, probes and swaps of a model's codes and of the speech decoded from them, and their report."""
