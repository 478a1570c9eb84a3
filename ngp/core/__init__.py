"""The pure core: no I/O, no clock, no sockets; events in, effects out."""
