"""Real Lightning nodes for tests, demonstration and benchmark: btcd on regtest and LND, with funded channels."""
