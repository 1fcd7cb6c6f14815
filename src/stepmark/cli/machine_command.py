"""``stepmark machine``."""

import json as json_module

from stepmark import machine
from stepmark.codec import encode
from stepmark.runner import Runner


def show(json: bool) -> None:
    """Print this machine's fingerprint.

    Raises:
        RunnerError: the process that looks for devices cannot be started.
    """
    with Runner() as runner:
        found = runner.machine
    if json:
        print(json_module.dumps(encode(found), indent=2, ensure_ascii=False))
    else:
        print(machine.describe(found))
