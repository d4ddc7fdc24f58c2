"""A paper's table as a grid of runs (methods x tasks x seeds), with the paper's numbers next to the measured ones."""
