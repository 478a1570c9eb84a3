"""Tenant: the rules of renting from a landlord; pure, as all of the core."""
