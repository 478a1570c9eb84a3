"""`tools/demo --mesh`: fifty nodes of a real network, each a router as shipped, and what each earned and paid.

The network is that of the scenario `leipzig_50_bird`. At the end the ledgers are added up, and a picture shows what
each node earned and spent.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only; no display is looked for
from matplotlib import pyplot  # noqa: E402
from matplotlib.colors import TwoSlopeNorm  # noqa: E402

from core_tests import mesh_traffic, session_xml  # noqa: E402
from core_tests.demo_view import SANDBOX, View, ngp_line  # noqa: E402
from core_tests.host import Host  # noqa: E402
from core_tests.lab import Lab  # noqa: E402
from core_tests.mesh_traffic import Sums  # noqa: E402
from core_tests.scenarios import FOLDER  # noqa: E402
from core_tests.session_namespaces import in_namespaces  # noqa: E402
from core_tests.session_xml import SessionFile  # noqa: E402

SCENARIO = "leipzig_50_bird"
FLOWS = 100
SHOWN = 5
SIZE_INCHES, DOTS_AN_INCH = (13, 9), 100


class Mesh:
    """The story of `--mesh`. Args: picture: where the picture goes; nothing of it is kept if the story fails."""

    def __init__(self, lab: Lab, view: View, picture: Path) -> None:
        self.lab = lab
        self.view = view
        self.picture = picture
        self.file = session_xml.read(FOLDER / f"{SCENARIO}.xml")

    def play(self) -> None:
        """Build the mesh, send traffic, and show the sums. Raises: AssertionError when something doesn't add up."""
        nodes, links = len(self.file.devices), len(self.file.links)
        self.view.title(f"1/3 A network of {nodes} nodes with {links} cables; bird finds the routes")
        self.view.tell(f"`ngp start` on all {nodes}, with nothing but MESH_INTERFACES in net.conf; it takes a minute")
        self.session = in_namespaces(self.lab, self.file)
        self.view.title(f"2/3 {FLOWS} pairs of nodes exchange datagrams, over up to {mesh_traffic.MOST_LINKS} links")
        sums = mesh_traffic.expect(self.session, FLOWS, self.view.tell)
        self.view.title("3/3 Who earned, who paid")
        self._tell(sums)
        draw(self.file, sums, self.picture)
        self.view.tell(f"picture: {self.picture}")

    def _tell(self, sums: Sums) -> None:
        ranked = sorted(self.session.hosts, key=sums.net, reverse=True)
        earned, spent = sum(map(sums.earned, ranked)), sum(map(sums.spent, ranked))
        self.view.tell(f"earned less spent, the {SHOWN} highest and the {SHOWN} lowest:")
        for node in (*ranked[:SHOWN], *ranked[-SHOWN:]):
            row = f"{node}: earned {sums.earned(node):>7,} msat, spent {sums.spent(node):>7,}"
            self.view.tell(f"{row}: {sums.net(node):>+7,}")
        self.view.tell(f"{sums.contracts:,} contracts; all earned {earned:,} msat and spent {spent:,}")
        text = f"{sums.paid_msat:,} msat prepaid and received; all ledgers sum to {earned - spent} ({SANDBOX})"
        self.view.tell(text, "green")

    def looks(self) -> list[tuple[Host, str]]:
        """Return commands that show more, with the hosts to which they belong."""
        names = list(self.session.hosts)[:2]
        verbs = ("top", "contracts", "accounts", "neighbours")
        state = {name: self.session.daemons[name].state_dir for name in names}
        return [(self.session.hosts[name], ngp_line(verb, state[name])) for name in names for verb in verbs]


def draw(file: SessionFile, sums: Sums, picture: Path) -> None:
    """Draw the graph: nodes by what they gained or spent, links by what was sold over them."""
    figure, axes = pyplot.subplots(figsize=SIZE_INCHES, dpi=DOTS_AN_INCH)
    places = {name: device.position for name, device in file.devices.items()}
    charged = sums.charged
    pairs = [link.nodes for link in file.links]
    sold_over = {pair: charged.get(pair, 0) + charged.get(pair[::-1], 0) for pair in pairs}
    most = max(1, *sold_over.values())
    for (one, other), sold in sold_over.items():
        ends = zip(places[one], places[other], strict=True)
        axes.plot(*ends, color="0.6" if sold else "0.9", linewidth=0.5 + 5 * sold / most, zorder=1)
    net = [sums.net(name) / 1000 for name in places]
    scale = TwoSlopeNorm(0.0, min(-0.001, *net), max(0.001, *net))
    x, y = zip(*places.values(), strict=True)
    dots = axes.scatter(x, y, c=net, s=150, cmap="RdYlGn", norm=scale, edgecolors="0.3", zorder=2)
    for name, place in places.items():
        axes.annotate(name[1:], place, ha="center", va="center", fontsize=6, zorder=3)
    figure.colorbar(dots, label="earned less spent, sat")
    axes.set_title("Who earned, who paid (links: as wide as what was sold over them)")
    axes.invert_yaxis()
    axes.set_axis_off()
    figure.tight_layout()
    figure.savefig(picture, format="png")
    pyplot.close(figure)
