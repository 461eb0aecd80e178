"""Runs that are killed, and files that are damaged: what may come of it, docs/reliability.md says."""

import mmseg_eomt  # noqa: F401  before anything of mmseg
