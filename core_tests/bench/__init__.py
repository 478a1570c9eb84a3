"""The benchmark behind `tools/bench`: every figure is compared with plain forwarding in the same run."""
