"""What the kinds of adapter add to a weight: one formula, with its paper, in each module."""
