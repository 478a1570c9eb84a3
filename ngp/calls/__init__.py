"""Calls: what a tenant asks of a landlord, as bytes. Every face but HTTPS, and the tenant's side of it, share this.

A call is a method's name, a request, and proofs of the WireGuard keys that it is about; its answer is a reply. How they
travel, by gRPC or between neighbours, is up to others. docs/rental-protocol.md describes all of it.
"""
