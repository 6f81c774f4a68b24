"""Physics: how thick slices see the anatomy, and how an answer is made to agree with them."""
