"""Models: what computes thin slices, what it is valid for, and the engine that runs networks."""
