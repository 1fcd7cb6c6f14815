"""The machine that is measured on: its fingerprint, what makes it unfit right now, the commit.

Linux tells most of it in files under ``/proc`` and ``/sys``; other systems have fewer of them,
and where a file is missing its fact or remark is left out. Imports no torch.
"""

from stepmark.machine.description import describe
from stepmark.machine.facts import fingerprint, installed
from stepmark.machine.fitness import unfit
from stepmark.machine.git import commit

__all__ = ["commit", "describe", "fingerprint", "installed", "unfit"]
