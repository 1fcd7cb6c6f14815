"""FLOPs against numbers worked by hand and those of the literature."""

from collections import UserDict
from typing import Any

import pytest
import torch
from factories import make_scenario
from torch import nn
from torch._subclasses import FakeTensor

from stepmark import Workload
from stepmark.probes.flops import count_work, on_meta
from stepmark.record import Reading


class Nothing(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("no sample is needed")


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def count(model: nn.Module, *inputs: torch.Tensor, loss: Any = None, **axes: Any) -> Reading:
    def compute_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        out = model(*batch)
        return loss(out) if loss else out.sum()

    workload = Workload(model=model, dataset=Nothing(), compute_loss=compute_loss, optimizer=sgd)
    return count_work(workload, make_scenario(**axes), inputs)[0]


def test_a_linear_layer_worked_by_hand() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    forward = 2 * 8 * (10 * 20 + 20 * 5)
    # Weights' gradients of both layers, the input's of the second one alone.
    backward = 2 * 8 * (10 * 20 + 2 * 20 * 5)
    assert count(model, torch.empty(8, 10)).value == forward + backward


def test_a_step_is_all_micro_batches_on_all_ranks() -> None:
    one = count(nn.Linear(4, 4), torch.empty(2, 4)).value
    assert one is not None
    assert count(nn.Linear(4, 4), torch.empty(2, 4), accumulation=3, world_size=2).value == 6 * one


@pytest.mark.parametrize("groups", [1, 4, 32])
def test_grouped_convolutions_cost_a_groups_share(groups: int) -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 1), nn.Conv2d(32, 64, 3, padding=1, groups=groups))
    first = 2 * 2 * 16 * 16 * 32 * 32
    second = 2 * 2 * 16 * 16 * 64 * (32 // groups) * 9
    # The first one has no input gradient.
    assert count(model, torch.empty(2, 32, 16, 16)).value == 2 * first + 3 * second


def test_transposed_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2, stride=2))
    first, second = 2 * 10 * 10 * 3 * 8, 2 * 10 * 10 * 8 * 4 * 4
    assert count(model, torch.empty(1, 3, 10, 10)).value == 2 * first + 3 * second


def test_frozen_layers_have_no_weight_gradients() -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    model[0].weight.requires_grad = False
    once = 2 * 4 * 100
    assert count(model, torch.empty(4, 10)).value == 2 * once + once


@pytest.mark.parametrize(
    ("name", "forward_gmacs", "first_layer"),
    # Multiply-adds of forward at 224 x 224 as torchvision's documentation of weights states them;
    # and output, channels and kernel of the first layer, which has no input gradient.
    [
        ("resnet18", 1.814, 64 * 112**2 * 3 * 7**2),
        ("resnet50", 4.089, 64 * 112**2 * 3 * 7**2),
        ("vit_b_16", 17.564, 768 * 14**2 * 3 * 16**2),
        ("mobilenet_v3_large", 0.217, 16 * 112**2 * 3 * 3**2),
    ],
)
def test_torchvisions_models_come_to_what_its_documentation_says(
    name: str, forward_gmacs: float, first_layer: int
) -> None:
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    step = count(model, torch.empty(1, 3, 224, 224)).value
    assert step == pytest.approx(2 * (3 * 1e9 * forward_gmacs - first_layer), rel=0.005)


def test_a_transformer_worked_by_hand() -> None:
    from stepmark.workloads.gpt import build

    layers, width, context, batch = 2, 64, 32, 4
    workload = build(layers=layers, width=width, context=context)
    samples = [workload.dataset[k] for k in range(batch)]
    inputs = tuple(torch.stack(column) for column in zip(*samples, strict=True))
    (vocabulary,) = {
        module.num_embeddings
        for module in workload.model.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings != context
    }
    # Of a token: queries, keys, values and their projection are 4 w^2, the two layers of the
    # perceptron 8 w^2, the logits w v. Attention: every token's scores and sums over all others.
    products = layers * 12 * width**2 + width * vocabulary
    attention = layers * 2 * context * width
    forward = 2 * batch * context * (products + attention)
    step = count_work(workload, make_scenario(), inputs)[0].value
    assert step == pytest.approx(3 * forward, rel=0.001)


def test_what_cannot_be_counted_is_refused_with_the_reason() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.lstm(x)[0]
            return out

    class Looks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * x.sum().item()

    class Waves(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft(super().forward(x)).abs()

    for model, inputs, reason in (
        (Last(), torch.empty(3, 2, 8), "lstm is a LSTM, of which PyTorch counts none"),
        (nn.Embedding(5, 3), torch.empty(4, dtype=torch.long), "no operator whose operations"),
        (Looks(4, 4), torch.empty(2, 4), "RuntimeError"),
        (Waves(4, 4), torch.empty(2, 4), "_fft_r2c has operations that PyTorch does not count"),
    ):
        found = count(model, inputs)
        assert found.value is None
        assert found.note.startswith("not counted: ")
        assert reason in found.note


def test_the_model_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(3))
    model(torch.randn(2, 1, 5, 5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert count(model, torch.empty(2, 1, 5, 5)).value
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


def test_a_loss_with_weights_of_its_own_is_counted() -> None:
    workload = Workload(
        model=nn.Linear(4, 2),
        dataset=Nothing(),
        loss_fn=nn.CrossEntropyLoss(weight=torch.ones(2)),
        optimizer=sgd,
    )
    found, _ = count_work(workload, make_scenario(), (torch.empty(3, 4), torch.empty(3).long()))
    assert found.value == 2 * 2 * 3 * 4 * 2


def test_bytes_moved_at_least_worked_by_hand() -> None:
    """Forward saves the input and its outcome, which squaring needs again."""
    model = nn.Linear(100, 50)
    workload = Workload(
        model=model,
        dataset=Nothing(),
        compute_loss=lambda model, batch: model(batch).square().mean(),
        optimizer=torch.optim.Adam,
    )
    held, saved = 4 * (100 * 50 + 50), 4 * 32 * (100 + 50)
    state = 2 * held + 2 * 4
    micro_batch = 2 * held + 2 * saved + held
    update = held + 2 * held + 2 * state
    scenario = make_scenario(accumulation=3, world_size=2)
    _, moved = count_work(workload, scenario, torch.empty(32, 100))
    assert moved.value == 2 * (3 * micro_batch + update)
    _, unknown = count_work(workload, make_scenario(precision="bf16"), torch.empty(32, 100))
    assert unknown.value is None
    assert "autocast" in unknown.note


class AsksUnlessTraced(nn.Module):
    """As transformers do of a padding mask: whether it is all ones."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 10, bias=False)
        self.always = always

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        outputs = self.layer(inputs)
        traced = isinstance(mask == 1, FakeTensor) and not self.always
        return outputs if not traced and mask.all() else outputs * mask[:, None]


def test_a_model_that_asks_for_values_unless_it_is_traced_is_counted() -> None:
    model = AsksUnlessTraced(always=False)
    assert count(model, torch.ones(4, 10), torch.ones(4)).value == 2 * (2 * 4 * 100)
    assert type(model.layer.weight) is nn.Parameter, "and is left as it was"


def test_a_model_that_asks_for_values_whatever_happens_is_refused() -> None:
    found = count(AsksUnlessTraced(always=True), torch.ones(4, 10), torch.ones(4))
    assert found.value is None
    assert found.note.endswith("Tensor.item() cannot be called on meta tensors")


def test_a_batch_type_of_a_librarys_own_is_left_where_it_is() -> None:
    """Its ``to`` may move in place, as that of transformers' BatchEncoding does."""

    class Encoding(UserDict[str, torch.Tensor]):
        def to(self, device: torch.device) -> "Encoding":
            self.data = {name: tensor.to(device) for name, tensor in self.data.items()}
            return self

    batch = Encoding(input=torch.ones(4, 10))
    bare = on_meta(batch)
    assert type(bare) is Encoding
    assert bare["input"].is_meta
    assert not batch["input"].is_meta
    workload = Workload(
        model=nn.Linear(10, 10),
        dataset=Nothing(),
        compute_loss=lambda model, batch: model(**batch).sum(),
        optimizer=sgd,
    )
    assert count_work(workload, make_scenario(), batch)[0].value == 2 * (2 * 4 * 100)
