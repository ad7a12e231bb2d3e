"""Which words, phones and tokens are spoken when: aligners, files of alignments, and text tokens in time."""
