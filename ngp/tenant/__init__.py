"""Tenant: rents addresses from a landlord, and keeps the credit. The rules are in `ngp.core.tenant`."""
