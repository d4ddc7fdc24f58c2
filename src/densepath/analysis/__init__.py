"""Pictures of the training data and of what was learned."""
