"""Reports of saved runs: HTML, Markdown and PNG. Imports no torch.

    store.Run -> cells (scenarios over repeats) -> sections (blocks) -> page (files)

`contrast` decides what may be called a difference, `findings` puts it in words.
"""

from stepmark.report.command import main
from stepmark.report.page import render

__all__ = ["main", "render"]
