"""Selling: what we do for the neighbours that buy from us."""
