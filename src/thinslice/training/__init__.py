"""Corpus, loop, export and recipes. Needs torch."""
