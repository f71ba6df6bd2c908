"""The flows, their params and the command line."""

import os
import signal
import sys

# The command line's imports take a second, in which Ctrl-C has no traceback. Then `flows.cli.ending` catches it.
if os.path.basename((sys.argv or [""])[0]) == "plumbline" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
