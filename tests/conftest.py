"""Settings for the whole suite."""

import os
import signal

from hypothesis import settings

# No deadline: a slow moment of the machine is not a failure. In CI the same examples every time: what a random search
# finds should turn up on somebody's own machine, not in an unrelated change.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

# The terminal of whoever runs this is not what is tested.
os.environ["TERM"] = "xterm"
for name in ("COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)

# What a shell starts in the background ignores some signals, and so would the commands that are tested: they inherit
# that. A handler they don't inherit.
for name in ("SIGHUP", "SIGINT", "SIGQUIT"):
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else lambda *_: None)
