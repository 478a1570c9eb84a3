"""Payment modules; each implements the port `Payment` and says whether its money is real.

gRPC writes messages about connections to standard error, past all our logs. The variable below silences them. It is set
here, since gRPC reads it only once, when gRPC is imported.
"""

import os

os.environ["GRPC_VERBOSITY"] = "NONE"
