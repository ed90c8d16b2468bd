"""Settings for the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline: a slow moment of the machine is not a failure. In CI the same examples every time: what a random search
# finds should turn up on somebody's own machine, not in an unrelated change.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")
