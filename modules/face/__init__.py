"""Faces: how tenants reach the landlord. Each implements `ngp.ports.Face`."""
