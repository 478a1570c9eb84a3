"""The real daemon in emulated networks: a laboratory of network namespaces, and the scenarios played in it."""

import os

os.environ["GRPC_VERBOSITY"] = "NONE"  # as in ngp.modules.payment, whichever is imported first
