"""Data sets: every scan of a folder or of a BIDS data set, on one machine or many."""
