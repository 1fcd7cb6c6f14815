"""How many optimizer steps the gradient scaler let through: skipped ones look fast."""

from typing import Any

from stepmark.loop import Training


class AppliedSteps:
    """Counts calls of the optimizer's step while a scaler may hold them back.

    The scaler decides by itself whether gradients are finite and simply does not call the
    optimizer where they are not, so counting calls costs no synchronization of its own. An
    optimizer that takes the scale itself (torch's fused ones) is always called; there the
    number is unknown.
    """

    def __init__(self, training: Training) -> None:
        self._optimizer = training.optimizer
        self._scaler = training.scaler
        self._countable = not getattr(self._optimizer, "_step_supports_amp_scaling", False)
        self._applied = 0
        self._hook: Any = None

    def begin(self) -> None:
        """Count from here."""
        if self._scaler is not None and self._countable:
            self._hook = self._optimizer.register_step_post_hook(self._count)

    def end(self, num_steps: int) -> int | None:
        """Steps skipped among ``num_steps`` since `begin`; ``None`` where that is unknown."""
        if self._scaler is None:
            return 0
        if self._hook is None:
            return None
        self._hook.remove()
        return num_steps - self._applied

    def _count(self, *_: Any) -> None:
        self._applied += 1
