"""Payment modules, each with the Payment port's methods; whether money is real is theirs to say.

gRPC writes what it thinks of a connection to standard error, past every log of ours; it is told not to before it is
imported, since it looks only then.
"""

import os

os.environ["GRPC_VERBOSITY"] = "NONE"
