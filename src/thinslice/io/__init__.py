"""Input and output: scans in every format, and the places where answers go."""
