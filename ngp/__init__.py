"""ngp, Network Gatekeeper: the routers of a mesh pay each other for forwarding, per kilobyte."""

__version__ = "0.1.0"
