"""`ngp close`: drops traffic from and to mesh interfaces until the daemon starts; for a machine that boots.

With WHEN_STOPPED: closed `ngp stop` leaves a firewall rule, which a reboot loses. This verb puts the rule back before
the network is up, when interfaces don't exist yet and there may be no state directory.
"""

from __future__ import annotations

from ngp.cli.place import Place
from ngp.cli.streams import say
from ngp.cli.verbs import verb_command


@verb_command("close")
def command(place: Place) -> int:
    """Close the mesh interfaces, if net.conf says so."""
    settings = place.settings(trusted_only=True, for_daemon=True)
    if not settings.closed_when_stopped:
        say("WHEN_STOPPED is open: nothing was closed")
        return 0
    from ngp.daemon import offline  # late: it imports every module

    offline.shut(settings, place.state_dir)
    say(f"closed until ngp starts: {', '.join(settings.mesh_interfaces)}")
    return 0
