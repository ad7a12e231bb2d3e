"""The language model and the speech model whose features are distilled, and statistics of those features."""
