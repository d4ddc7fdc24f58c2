"""A paper's table as a runnable thing: methods x tasks x seeds, with the paper's numbers beside the measured ones."""
