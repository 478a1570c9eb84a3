"""Calls: what a tenant asks a landlord, as bytes. All faces but HTTPS use this, at both the tenant and the landlord.

A call is a method's name, a request, and proofs of the WireGuard keys that it is about; its answer is a reply. Other
modules carry both, by gRPC or between neighbours. docs/rental-protocol.md describes all of it. `grpc` also serves the
gRPC link, which carries other messages than calls of tenants.
"""
