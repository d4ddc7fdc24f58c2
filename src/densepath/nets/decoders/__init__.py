"""Decoders of masked image modelling: from features back to pixels."""
