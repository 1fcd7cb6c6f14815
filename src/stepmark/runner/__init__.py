"""Fresh processes for every measurement, whatever becomes of them."""

from stepmark.runner.errand import TrainingWatcher, Watcher
from stepmark.runner.messages import EpochDone, TrainingBegun
from stepmark.runner.supervisor import Runner, measure

__all__ = ["EpochDone", "Runner", "TrainingBegun", "TrainingWatcher", "Watcher", "measure"]
