"""What the forkserver imports once, so that a fresh process starts in milliseconds.

Imports alone: a tensor operation, a CUDA call or a thread setting here would be inherited by
every measurement (a thread pool does not survive a fork, a CUDA context must not).
"""

import torchvision.datasets
import torchvision.transforms.v2  # noqa: F401

import stepmark.runner.host
import stepmark.runner.rank
import stepmark.workloads.articles
import stepmark.workloads.gpt
import stepmark.workloads.vision  # noqa: F401
from stepmark.loading import die_with_parent

# The server, with the host: it would otherwise live for as long as one of its processes does.
die_with_parent()
