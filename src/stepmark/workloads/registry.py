"""The built-in workloads by name. A new one is its function and one record here."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Builtin:
    """One built-in workload.

    Attributes:
        target: ``module:function`` that builds it; the function's keywords are its options.
        batch_size: the article's, where it gives one.
        summary: one line for people.
    """

    target: str
    batch_size: int
    summary: str


BUILTIN: dict[str, Builtin] = {
    "mlp-mse": Builtin(
        target="stepmark.workloads.articles:mlp_mse",
        batch_size=64,
        summary="100-200-ReLU-10-Softmax, MSE, SGD with momentum (article A)",
    ),
    "mlp-toy": Builtin(
        target="stepmark.workloads.articles:mlp_toy",
        batch_size=2,
        summary="2-30-20-2 on five points, cross entropy, SGD (article B)",
    ),
    "mlp-fashion-mnist": Builtin(
        target="stepmark.workloads.articles:mlp_fashion_mnist",
        batch_size=64,
        summary="784-512-512-10 on FashionMNIST, cross entropy, SGD (article C)",
    ),
    "mlp-regression": Builtin(
        target="stepmark.workloads.articles:mlp_regression",
        batch_size=32,
        summary="10-20-1 on a custom Dataset, MSE, SGD (article D)",
    ),
    "cnn-mnist": Builtin(
        target="stepmark.workloads.articles:cnn_mnist",
        batch_size=64,
        summary="a small CNN on MNIST with two augmentations, Adam (article E)",
    ),
    "gpt": Builtin(
        target="stepmark.workloads.gpt:build",
        batch_size=16,
        summary="a small decoder-only transformer, AdamW, clipped gradients",
    ),
}
