"""Payment modules; each implements the port `Payment` and says whether its money is real.

gRPC writes its opinions about connections to standard error, past all our logs. The variable below silences it; gRPC
reads it only when it is imported.
"""

import os

os.environ["GRPC_VERBOSITY"] = "NONE"
