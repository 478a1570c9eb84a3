"""Network modules: gate, meter and cut in the kernel."""
