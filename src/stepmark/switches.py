"""Precision and threads: set, set back after the workload's own code, and read back."""

import os

import torch

from stepmark.place import Place

# What shapes a CPU step from outside torch; recorded with every result.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


class Switches:
    """Precision and threads, which the workload's own code may set otherwise."""

    def __init__(self, place: Place, *, tf32: bool) -> None:
        self._place = place
        self._tf32 = tf32
        self.notes: list[str] = []
        place.device.configure(tf32=tf32)
        self._wanted = self._read()

    def set_back(self) -> None:
        """After the workload was imported and built: a scenario's precision is the scenario's."""
        self._compare("the workload set {name} to {found}; set back to {wanted}")
        self._place.device.configure(tf32=self._tf32)
        torch.set_num_threads(self._place.threads)

    def final(self) -> dict[str, str]:
        """As they are after measuring, with the environment's settings of threads."""
        self._compare("{name} became {found} while measuring, {wanted} was asked for")
        found = self._read()
        del found["threads"]  # a field of its own in the record
        return found | {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}

    def _read(self) -> dict[str, str]:
        return {**self._place.device.settings(), "threads": str(torch.get_num_threads())}

    def _compare(self, text: str) -> None:
        for name, found in self._read().items():
            if found != self._wanted[name]:
                wanted = self._wanted[name]
                self.notes.append(text.format(name=name, found=found, wanted=wanted))
