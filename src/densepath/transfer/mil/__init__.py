"""Multiple-instance learning: answers for slides and patients from the features of their tiles."""
