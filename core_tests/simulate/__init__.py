"""The simulator behind `tools/simulate`: the real core of many nodes in one process, on stand-ins and a clock."""
