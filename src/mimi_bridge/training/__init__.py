"""What trains: codecs, heads and their codebooks."""
