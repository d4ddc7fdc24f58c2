"""Pictures of what goes into a training and of what was learned."""
