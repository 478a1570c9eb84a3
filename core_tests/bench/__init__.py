"""The benchmark behind `tools/bench`: every figure is taken beside its plain counterpart in the same run."""
