"""Tunnel modules: the landlord's tunnel to its tenants."""
