"""The routing daemons babeld and bird as services of the CORE emulator, with the configuration of a session's file.

Not imported here: CORE's daemon does it, as for `ngp_service.py`.
"""

from core.services.base import CoreService  # type: ignore[import-not-found]


class BabeldService(CoreService):  # type: ignore[misc]
    """Babel, by Debian's babeld."""

    name = "babeld"
    group = "Routing"
    files = ["babeld.conf"]
    executables = ["babeld"]
    startup = ["babeld -D -I babeld.pid -S babeld.state -L babeld.log -c babeld.conf"]

    def get_text_template(self, name: str) -> str:
        """Return the configuration of a node for which a session's file has none: all its interfaces."""
        return """
        % for one in node.get_ifaces(control=False):
        interface ${one.name}
        % endfor
        """


class BirdService(CoreService):  # type: ignore[misc]
    """OSPF and others, by Debian's bird."""

    name = "bird"
    group = "Routing"
    files = ["bird.conf"]
    executables = ["bird"]
    startup = ["bird -s bird.ctl -c bird.conf"]

    def get_text_template(self, name: str) -> str:
        """Return the configuration of a node for which a session's file has none: it does nothing."""
        return "protocol device { }\n"
