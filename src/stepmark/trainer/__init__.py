"""One rank's training, epoch by epoch; what is asked for and what comes of it is data
(`stepmark.training`).
"""

from stepmark.trainer.fit import fit

__all__ = ["fit"]
