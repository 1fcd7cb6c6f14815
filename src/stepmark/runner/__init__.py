"""Fresh processes for every measurement, whatever becomes of them."""

from stepmark.runner.errand import Watcher
from stepmark.runner.supervisor import Runner, measure

__all__ = ["Runner", "Watcher", "measure"]
