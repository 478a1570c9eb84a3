"""Payment modules: receive and make Lightning payments."""
