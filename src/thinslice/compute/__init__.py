"""Compute: from acquired slices and a plan to thin slices, and how well these agree with what was acquired."""
