"""What an axis can be set to by name."""

from enum import StrEnum


class Precision(StrEnum):
    """Arithmetic of forward and loss.

    ``fp32`` is full IEEE single precision, ``tf32`` lets matrix units round its inputs, ``bf16``
    and ``fp16`` run under autocast, ``fp16`` with a gradient scaler.
    """

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def autocasts(self) -> bool:
        """Whether operators run in it where that is safe, and in fp32 elsewhere."""
        return self in (Precision.BF16, Precision.FP16)


class Task(StrEnum):
    """What a step does.

    ``train`` is a step of training. ``evaluate`` is forward and loss of one batch of the
    validation data with the model in evaluation mode, ``infer`` its forward alone; neither records
    gradients, unless asked to.
    """

    TRAIN = "train"
    EVALUATE = "evaluate"
    INFER = "infer"


class CompileMode(StrEnum):
    """``torch.compile`` in one of its modes, or not at all."""

    OFF = "off"
    DEFAULT = "default"
    REDUCE_OVERHEAD = "reduce-overhead"
    MAX_AUTOTUNE = "max-autotune"


class OptimizerName(StrEnum):
    """An optimizer of torch's; ``sgd-momentum`` is SGD with a momentum of 0.9."""

    SGD = "sgd"
    SGD_MOMENTUM = "sgd-momentum"
    ADAGRAD = "adagrad"
    RMSPROP = "rmsprop"
    ADAM = "adam"
    ADAMW = "adamw"


class OptimizerImpl(StrEnum):
    """How torch carries out an optimizer's step.

    ``for-loop`` takes one parameter after another, ``foreach`` an operation on all of them at a
    time, ``fused`` all operations at once. ``default`` leaves the choice to the workload and torch.
    """

    DEFAULT = "default"
    FOR_LOOP = "for-loop"
    FOREACH = "foreach"
    FUSED = "fused"


class LossName(StrEnum):
    """A loss of torch's, applied to a network's outputs.

    ``cross-entropy``, ``bce`` (with logits) and ``kl-div`` take outputs for logits; where targets
    are class indices, all but the first take them one-hot.
    """

    CROSS_ENTROPY = "cross-entropy"
    MSE = "mse"
    BCE = "bce"
    L1 = "l1"
    KL_DIV = "kl-div"
