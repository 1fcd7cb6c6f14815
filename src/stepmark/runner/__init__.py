"""Fresh processes for every measurement, whatever becomes of them."""

from stepmark.runner.supervisor import Runner, Watcher, measure

__all__ = ["Runner", "Watcher", "measure"]
