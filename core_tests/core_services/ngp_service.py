"""ngp as a service of the CORE emulator: a node that has it runs the daemon with its net.conf.

Not imported here: CORE's daemon does it (`custom_services_dir` in its core.conf names this folder). The command `ngp`
must be in that daemon's PATH. State and log are in the node's folder.
"""

from core.services.base import CoreService  # type: ignore[import-not-found]


class NgpService(CoreService):  # type: ignore[misc]
    """The daemon, started with the node; a session's file brings its net.conf."""

    name = "ngp"
    group = "Payment"
    files = ["net.conf"]
    executables = ["ngp"]
    startup = [
        "mkdir -p -m 700 state && NGP_STATE_DIR=$PWD/state ngp start -v --config net.conf >log 2>&1",
    ]
    validate = ["ngp status --state-dir state"]
    shutdown = ["ngp stop --state-dir state"]

    def get_text_template(self, name: str) -> str:
        """Return net.conf of a node for which a session's file has none: its first interface leads to neighbours."""
        return "MESH_INTERFACES: ${node.get_ifaces(control=False)[0].name}\n"
