"""The real daemon in emulated networks: a laboratory of network namespaces, and the scenarios played in it."""
