"""Buying: what we do with the neighbours that we buy from."""
