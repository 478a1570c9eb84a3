"""A daemon that is going to be killed: sets a tunnel up with the values on its standard input, says so, and waits."""

import pickle
import sys
import time

from ngp.modules.tunnel.wireguard import WireGuard

tunnel = WireGuard()
tunnel.set_up(*pickle.load(sys.stdin.buffer))
print("ready", flush=True)
time.sleep(600)
