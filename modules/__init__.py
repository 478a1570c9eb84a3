"""Adapters, grouped by the port they serve; installed as `ngp.modules` and found by entry points."""
