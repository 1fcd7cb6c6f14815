"""The built-in workloads train; the resolver finds users' own and says what is wrong."""

import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import models

from stepmark import Workload
from stepmark.errors import WorkloadError
from stepmark.workloads import BUILTIN, check, load
from stepmark.workloads.articles import ToyDataset, ToyNetwork
from stepmark.workloads.gpt import GPT
from stepmark.workloads.resolve import _torchvision_classifiers
from stepmark.workloads.vision import loss_with_auxiliary_heads

BUILD = """
import torch
from stepmark import Workload

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((4,), float(index)), torch.tensor(index % 2)

def build(width: int = 2, rate: float = 0.1, name: str = "", flat: bool = False, extra=None):
    model = torch.nn.Linear(4, width)
    model.seen = (width, rate, name, flat, extra)
    return Workload(
        model=model,
        dataset=Numbers(),
        loss_fn=torch.nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr=rate),
    )
"""


@pytest.fixture(scope="module")
def data_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def _clean_process(
    data_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """An empty current directory; imports of the test are undone."""
    monkeypatch.setenv("STEPMARK_DATA", str(data_directory))
    monkeypatch.delenv("STEPMARK_DOWNLOAD", raising=False)
    monkeypatch.chdir(tmp_path)
    path, modules = sys.path[:], set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write_file(name: str, content: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content))
        return path

    return write_file


def train(workload: Workload, *, batch_size: int, num_steps: int) -> list[float]:
    """Losses of a few plain optimizer steps."""
    loader = DataLoader(workload.dataset, batch_size=batch_size, shuffle=True)
    optimizer = workload.optimizer(workload.model.parameters())
    workload.model.train()
    losses: list[float] = []
    while len(losses) < num_steps:
        for batch in loader:
            loss = workload.loss(workload.model, batch)
            optimizer.zero_grad()
            loss.backward()
            if workload.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(workload.model.parameters(), workload.clip_norm)
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == num_steps:
                break
    return losses


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Steps that bring each built-in's loss down, kept short; gpt is made small.
LEARNS = {
    "mlp-mse": 60,
    "mlp-toy": 30,
    "mlp-fashion-mnist": 50,
    "mlp-regression": 60,
    "cnn-mnist": 60,
    "gpt?layers=1&width=64&context=32&vocab=32": 60,
    "torchvision:resnet18?size=32&classes=4": 10,
    "torchvision:squeezenet1_1?size=64&classes=4&data=jpeg": 1,
    "torchvision:googlenet?size=64": 1,
    "torchvision:vit_b_16?size=32": 1,
}


class TestBuiltins:
    def test_every_builtin_is_trained_here(self) -> None:
        assert {spec.partition("?")[0] for spec in LEARNS} >= set(BUILTIN)

    @pytest.mark.parametrize(("spec", "num_steps"), LEARNS.items())
    def test_it_builds_and_learns(self, spec: str, num_steps: int) -> None:
        torch.manual_seed(0)
        workload = load(spec)()
        builtin = BUILTIN.get(spec.partition("?")[0])
        losses = train(
            workload, batch_size=builtin.batch_size if builtin else 8, num_steps=num_steps
        )
        assert torch.isfinite(torch.tensor(losses)).all()
        assert all(p.grad is not None for p in workload.model.parameters())
        if num_steps > 1:
            fifth = num_steps // 5
            assert sum(losses[-fifth:]) < sum(losses[:fifth])

    @pytest.mark.parametrize("spec", LEARNS)
    def test_its_validation_samples_have_the_shape_of_its_training_samples(self, spec: str) -> None:
        workload = load(spec)()
        assert workload.valid_dataset is not None
        (inputs, targets), (valid_inputs, valid_targets) = (
            next(iter(DataLoader(dataset, batch_size=2)))
            for dataset in (workload.dataset, workload.valid_dataset)
        )
        assert inputs.shape == valid_inputs.shape
        assert targets.shape == valid_targets.shape

    @pytest.mark.parametrize("spec", ["mlp-mse", "cnn-mnist", "gpt?layers=1", "mlp-regression"])
    def test_its_dataset_survives_pickling(self, spec: str) -> None:
        dataset = load(spec)().dataset
        copy = pickle.loads(pickle.dumps(dataset))
        torch.manual_seed(0)
        first = dataset[3]
        torch.manual_seed(0)
        second = copy[3]
        assert torch.equal(first[0], second[0])

    def test_the_label_says_where_the_samples_come_from(self) -> None:
        assert load("mlp-fashion-mnist")().data == "FashionMNIST (generated)"
        assert load("cnn-mnist")().data == "MNIST (generated)"
        assert load("torchvision:resnet18?size=32")().data == "tensors (generated)"
        assert load("torchvision:resnet18?size=32&data=jpeg")().data == "JPEG folder (generated)"

    def test_the_toy_network_has_the_articles_2213_parameters(self) -> None:
        assert num_parameters(ToyNetwork(num_inputs=50, num_outputs=3)) == 2_213

    def test_the_toy_network_gets_all_its_points_right(self) -> None:
        torch.manual_seed(123)
        workload = load("mlp-toy")()
        train(workload, batch_size=2, num_steps=3 * 10)
        for dataset in (workload.dataset, workload.valid_dataset):
            assert isinstance(dataset, ToyDataset)
            predictions = workload.model(dataset.features).argmax(dim=1)
            assert predictions.tolist() == dataset.labels.tolist()

    def test_the_networks_have_the_articles_layers(self) -> None:
        sizes = {
            "mlp-mse": [(100, 200), (200, 10)],
            "mlp-toy": [(2, 30), (30, 20), (20, 2)],
            "mlp-fashion-mnist": [(784, 512), (512, 512), (512, 10)],
            "mlp-regression": [(10, 20), (20, 1)],
        }
        for name, expected in sizes.items():
            layers = [m for m in load(name)().model.modules() if isinstance(m, torch.nn.Linear)]
            assert [(m.in_features, m.out_features) for m in layers] == expected

    def test_mlp_mse_targets_are_one_hot(self) -> None:
        _, target = load("mlp-mse")().dataset[0]
        assert sorted(target.tolist()) == [0.0] * 9 + [1.0]

    def test_mnist_images_are_augmented_for_training_alone(self) -> None:
        workload = load("cnn-mnist")()
        torch.manual_seed(0)
        assert not torch.equal(workload.dataset[0][0], workload.dataset[0][0])
        assert workload.valid_dataset is not None
        assert torch.equal(workload.valid_dataset[0][0], workload.valid_dataset[0][0])


class TestGpt:
    def test_a_token_has_no_influence_on_earlier_positions(self) -> None:
        torch.manual_seed(0)
        model = GPT(layers=2, width=16, heads=2, context=8, vocab=11).eval()
        tokens = torch.randint(11, (1, 8))
        changed = tokens.clone()
        changed[0, 5] = (changed[0, 5] + 1) % 11
        differs = (model(tokens) != model(changed)).any(dim=-1)[0]
        assert differs.tolist() == [False] * 5 + [True] * 3

    def test_targets_are_the_inputs_one_position_on(self) -> None:
        inputs, targets = load("gpt?context=16")().dataset[0]
        assert inputs.shape == (16,)
        assert inputs.dtype == torch.int64
        assert torch.equal(inputs[1:], targets[:-1])

    def test_an_untrained_model_knows_nothing(self) -> None:
        workload = load("gpt?layers=1&width=32&vocab=64")()
        inputs, targets = workload.dataset[0]
        loss = workload.loss(workload.model, (inputs[None], targets[None]))
        assert loss.item() == pytest.approx(torch.log(torch.tensor(64.0)).item(), rel=0.05)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("width=30", "width=30: must be a multiple of heads=4"),
            ("layers=0", "layers=0: must be at least 1"),
            ("vocab=1", "vocab=1: must be at least 2"),
        ],
    )
    def test_options_out_of_range_are_refused(self, options: str, message: str) -> None:
        with pytest.raises(WorkloadError, match=f"gpt: {message}"):
            load(f"gpt?{options}")()


class TestTorchvision:
    def test_the_names_read_from_its_sources_are_those_it_lists(self) -> None:
        assert set(_torchvision_classifiers()) == set(models.list_models(module=models))

    def test_the_input_has_the_models_usual_size(self) -> None:
        assert load("torchvision:squeezenet1_1")().dataset[0][0].shape == (3, 224, 224)
        assert load("torchvision:inception_v3")().dataset[0][0].shape == (3, 299, 299)

    def test_auxiliary_heads_count_in_training_and_not_in_evaluation(self) -> None:
        class Heads(torch.nn.Module):
            def forward(self, inputs: torch.Tensor) -> object:
                return (inputs, 2 * inputs, 3 * inputs) if self.training else inputs

        model, inputs, targets = Heads(), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        losses = [torch.nn.functional.cross_entropy(n * inputs, targets).item() for n in (1, 2, 3)]
        loss = loss_with_auxiliary_heads(model, (inputs, targets), weight=0.3)
        assert loss.item() == pytest.approx(losses[0] + 0.3 * (losses[1] + losses[2]))
        loss = loss_with_auxiliary_heads(model.eval(), (inputs, targets), weight=0.3)
        assert loss.item() == pytest.approx(losses[0])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("data=png", "data='png': choose from tensors, jpeg"),
            ("size=0", "size=0: must be at least 1"),
            ("classes=0", "classes=0: must be at least 1"),
        ],
    )
    def test_options_out_of_range_are_refused(self, options: str, message: str) -> None:
        with pytest.raises(WorkloadError, match=message):
            load(f"torchvision:resnet18?{options}")()


class TestCheck:
    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (
                "mlp-toi",
                r"no such built-in workload \(did you mean 'mlp-toy'\?\); built in are mlp",
            ),
            (
                "",
                r"'': no such built-in workload; built in are mlp-mse, .*path/to/file.py:function",
            ),
            ("my_train.py", r"which function of it\? Write my_train.py:FUNCTION"),
            ("my_train.py:", r"'' is no function name"),
            ("my_train.py:a b", r"'a b' is no function name"),
            (":build", r"'' is neither a module nor a .py file"),
            ("a-b:build", r"'a-b' is neither a module nor a .py file"),
            ("absent.py:build", r"absent.py:build: no file /.*/absent.py$"),
            ("sub/notes.txt:build", r"sub/notes.txt is not a .py file"),
            ("my_train.py:biuld", r"no 'biuld' \(did you mean 'build'\?\); its functions: build$"),
            ("empty.py:build", r"defines no 'build'; its functions: none"),
            ("broken.py:build", r"broken.py, line 2: "),
            ("nul.py:build", r"nul.py.* null bytes"),
            ("nowhere_pkg.mod:build", r"no module 'nowhere_pkg' in /"),
            ("pkg.absent:build", r"no module 'pkg.absent' in /"),
            ("pkg.mod.deeper:build", r"no module 'pkg.mod.deeper' in /"),
            ("pkg.mod:other", r"pkg.mod:other: defines no 'other'"),
            ("__main__:build", r"its __main__ is another; write path/to/file.py:build$"),
            ("torchvision:resnet81", r"no classifier 'resnet81' \(did you mean 'resnet18'\?\)"),
            ("gpt?", r"option '' must be written key=value"),
            ("gpt?width", r"option 'width' must be written key=value"),
            ("gpt?width=", r"option 'width=' must be written key=value"),
            ("gpt?width=1&width=2", r"option 'width' is given twice"),
            (
                "gpt?widht=1",
                r"no option 'widht' \(did you mean 'width'\?\); its options: layers, w",
            ),
            ("mlp-toy?width=1", r"no option 'width'; its options: none"),
            ("torchvision:resnet18?name=x", r"no option 'name'.*: size, classes, data"),
            ("my_train.py:build?wide=1", r"no option 'wide'.*: width, rate, name, flat, extra"),
        ],
    )
    def test_a_mistake_is_named(
        self, spec: str, message: str, write: Callable[[str, str], Path]
    ) -> None:
        write("my_train.py", BUILD)
        write("sub/notes.txt", "")
        write("empty.py", "")
        write("broken.py", "x = 1\ndef build(:\n    pass\n")
        write("nul.py", "x = 1\0")
        write("pkg/__init__.py", "")
        write("pkg/mod.py", "def build(): ...")
        with pytest.raises(WorkloadError, match=message) as caught:
            check(spec)
        assert "\n" not in str(caught.value)
        with pytest.raises(WorkloadError, match=message):
            load(spec)

    @pytest.mark.parametrize(
        "source",
        [
            "from elsewhere import build",
            "import elsewhere as build",
            "from elsewhere import *",
            "build = make()",
            "build: object = make()",
            "for build in (): pass",
            "if flag:\n    def build(width): ...",
            "try:\n    build = a\nexcept Error:\n    build = b",
            "class build: ...",
            "globals()['build'] = 1",
            "def __getattr__(name): ...",
            "def setup():\n    global build\n    build = 1",
            "def build(): ...\nbuild = wrap(build)",
            "@decorated\ndef build(): ...",
            "def build(**options): ...",
            "async def build(*, width): ...",
        ],
    )
    def test_a_name_that_may_be_bound_when_it_runs_is_let_pass(
        self, source: str, write: Callable[[str, str], Path]
    ) -> None:
        write("my_train.py", source)
        check("my_train.py:build?width=1")

    def test_a_local_name_is_not_a_definition(self, write: Callable[[str, str], Path]) -> None:
        write("my_train.py", "def make():\n    build = 1\nclass A:\n    def build(self): ...")
        with pytest.raises(WorkloadError, match="defines no 'build'"):
            check("my_train.py:build")

    def test_nothing_is_imported_torch_least_of_all(
        self, write: Callable[[str, str], Path]
    ) -> None:
        write("my_train.py", "import torch\nraise SystemExit\ndef build(): ...")
        write("pkg/__init__.py", "raise RuntimeError('imported')")
        write("pkg/mod.py", "def build(): ...")
        specs = [
            *BUILTIN,
            "torchvision:resnet18?size=64",
            "torch.optim.sgd:SGD",
            "my_train.py:build",
            "pkg.mod:build",
        ]
        script = (
            "import sys\n"
            "sys.path[:] = [p for p in sys.path if p]\n"  # as for an installed command
            "from stepmark.workloads import check\n"
            f"before = sys.path[:]\n"
            f"for spec in {specs!r}: check(spec)\n"
            "assert sys.path == before\n"
            "print({'torch', 'torchvision', 'numpy', 'pkg', 'my_train'} & set(sys.modules))\n"
        )
        output = subprocess.check_output([sys.executable, "-c", script], text=True)
        assert output.strip() == "set()"


class TestLoad:
    def test_a_file_is_found_by_relative_and_absolute_path(
        self, write: Callable[[str, str], Path]
    ) -> None:
        path = write("sub/my_train.py", BUILD)
        assert isinstance(load("sub/my_train.py:build")(), Workload)
        assert isinstance(load(f"{path}:build")(), Workload)

    def test_each_call_builds_a_new_workload(self, write: Callable[[str, str], Path]) -> None:
        write("my_train.py", BUILD)
        build = load("my_train.py:build")
        assert build().model is not build().model

    def test_a_module_is_found_from_the_current_directory(
        self, write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
        write("own_package/__init__.py", "")
        write("own_package/training.py", BUILD)
        assert isinstance(load("own_package.training:build")(), Workload)

    def test_options_arrive_with_the_type_they_are_annotated_with(
        self, write: Callable[[str, str], Path]
    ) -> None:
        write("my_train.py", BUILD)
        model = load("my_train.py:build?width=3&rate=1&name=7&flat=true&extra=1e-3")().model
        assert model.seen == (3, 1, "7", True, 0.001)

    def test_string_annotations_count_too(self, write: Callable[[str, str], Path]) -> None:
        write("my_train.py", "from __future__ import annotations\n" + BUILD)
        with pytest.raises(WorkloadError, match=r"my_train.py:build: width='x' must be a whole"):
            load("my_train.py:build?width=x")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("width=abc", "width='abc' must be a whole number"),
            ("width=1.5", "width='1.5' must be a whole number"),
            ("width=true", "width='true' must be a whole number"),
            ("rate=fast", "rate='fast' must be a number"),
            ("flat=1", "flat='1' must be true or false"),
        ],
    )
    def test_an_option_of_the_wrong_type_is_refused(
        self, options: str, message: str, write: Callable[[str, str], Path]
    ) -> None:
        write("my_train.py", BUILD)
        with pytest.raises(WorkloadError, match=f"my_train.py:build: {message}"):
            load(f"my_train.py:build?{options}")

    def test_an_unknown_option_of_an_imported_function_is_refused(
        self, write: Callable[[str, str], Path]
    ) -> None:
        write("elsewhere.py", BUILD)
        write("my_train.py", "from elsewhere import build")
        with pytest.raises(WorkloadError, match=r"no option 'widht' \(did you mean 'width'\?\)"):
            load("my_train.py:build?widht=1")

    def test_a_missing_option_without_default_is_named(
        self, write: Callable[[str, str], Path]
    ) -> None:
        write("my_train.py", "def build(width): ...")
        with pytest.raises(WorkloadError, match=r"missing a required argument: 'width'"):
            load("my_train.py:build")

    def test_siblings_of_a_file_can_be_imported_when_it_runs_and_when_it_builds(
        self, write: Callable[[str, str], Path]
    ) -> None:
        write("sub/my_parts.py", BUILD)
        write("sub/my_later.py", "")
        write(
            "sub/my_train.py",
            "import my_parts\ndef build():\n    import my_later\n    return my_parts.build()",
        )
        assert isinstance(load("sub/my_train.py:build")(), Workload)

    def test_a_file_is_a_module_of_its_own_name(self, write: Callable[[str, str], Path]) -> None:
        write("my_train.py", BUILD)
        dataset = load("my_train.py:build")().dataset
        assert type(dataset).__module__ == "my_train"
        assert len(pickle.loads(pickle.dumps(dataset))) == 8

    @pytest.mark.parametrize("name", ["json", "mailbox"])  # imported already, and not yet
    def test_a_file_named_like_a_standard_module_does_not_replace_it(
        self, name: str, write: Callable[[str, str], Path]
    ) -> None:
        write(f"{name}.py", BUILD)
        write("my_parts.py", "")
        write(f"sub/{name}.py", "import my_parts\n" + BUILD)
        before = sys.modules.get(name)
        workload = load(f"{name}.py:build")()
        assert isinstance(workload, Workload)
        assert isinstance(load(f"sub/{name}.py:build")(), Workload)
        assert sys.modules.get(name) is before
        module = type(workload.dataset).__module__
        assert module.startswith(f"{name}_")
        assert type(load(f"{name}.py:build")().dataset) is type(workload.dataset)
        __import__(name)
        assert not hasattr(sys.modules[name], "build")

    def test_two_files_of_one_name_are_two_modules(self, write: Callable[[str, str], Path]) -> None:
        write("one/my_train.py", BUILD)
        write("two/my_train.py", BUILD.replace("Linear(4", "Linear(5"))
        assert load("one/my_train.py:build")().model.in_features == 4
        assert load("two/my_train.py:build")().model.in_features == 5
        assert load("one/my_train.py:build")().model.in_features == 4

    def test_spawned_loader_workers_unpickle_the_dataset_of_a_file(
        self, write: Callable[[str, str], Path]
    ) -> None:
        write("sub/my_parts.py", BUILD)
        write("sub/my_train.py", BUILD + "\nimport my_parts\n")
        loader = DataLoader(
            load("sub/my_train.py:build")().dataset,
            batch_size=4,
            num_workers=1,
            multiprocessing_context="spawn",
        )
        inputs = torch.cat([batch[0] for batch in loader])
        assert inputs[:, 0].tolist() == [float(i) for i in range(8)]


class TestFailingCode:
    """A user's own code raises; the message stays one line and the cause is kept."""

    def test_an_import_that_raises(self, write: Callable[[str, str], Path]) -> None:
        write("my_train.py", "def build(): ...\nraise ValueError('first line\\nsecond')")
        for _ in range(2):  # a module that failed is not left behind half made
            with pytest.raises(
                WorkloadError,
                match=r"^my_train.py: its import raised ValueError: first line second$",
            ) as caught:
                load("my_train.py:build")
            assert isinstance(caught.value.__cause__, ValueError)

    def test_a_missing_dependency(self, write: Callable[[str, str], Path]) -> None:
        write("own_module.py", "import nowhere_pkg\ndef build(): ...")
        message = (
            "own_module: its import raised ModuleNotFoundError: No module named 'nowhere_pkg'; "
            f"install it for {sys.executable}, or set PYTHONPATH to its folder"
        )
        with pytest.raises(WorkloadError, match=f"^{re.escape(message)}$"):
            load("own_module:build")

    def test_a_missing_part_of_a_package_is_nothing_to_install(
        self, write: Callable[[str, str], Path]
    ) -> None:
        write("own_module.py", "import json.absent\ndef build(): ...")
        with pytest.raises(WorkloadError, match=r"No module named 'json.absent'.?$"):
            load("own_module:build")

    def test_a_script_that_parses_arguments_when_imported(
        self, write: Callable[[str, str], Path]
    ) -> None:
        write("my_train.py", "def build(): ...\nraise SystemExit(2)")
        with pytest.raises(WorkloadError, match=r"its import raised SystemExit: 2"):
            load("my_train.py:build")

    def test_a_function_that_raises(self, write: Callable[[str, str], Path]) -> None:
        write("my_train.py", "def build():\n    raise ValueError('no such file: a.csv')")
        build = load("my_train.py:build")
        with pytest.raises(WorkloadError) as caught:
            build()
        assert str(caught.value) == "my_train.py:build raised ValueError: no such file: a.csv"
        assert isinstance(caught.value.__cause__, ValueError)

    def test_an_exception_without_a_message(self, write: Callable[[str, str], Path]) -> None:
        write("my_train.py", "def build():\n    assert False")
        with pytest.raises(WorkloadError, match=r"^my_train.py:build raised AssertionError$"):
            load("my_train.py:build")()

    def test_a_workload_that_is_refused(self, write: Callable[[str, str], Path]) -> None:
        write(
            "my_train.py",
            """
            from stepmark import Workload
            def build():
                return Workload(model=3, dataset=[1], optimizer=print)
            """,
        )
        with pytest.raises(WorkloadError, match=r"^my_train.py:build: model=int: must be a torch"):
            load("my_train.py:build")()

    def test_something_else_than_a_workload(self, write: Callable[[str, str], Path]) -> None:
        write("my_train.py", "def build():\n    return (1, 2)")
        with pytest.raises(WorkloadError, match=r"my_train.py:build returned tuple: it must"):
            load("my_train.py:build")()

    def test_a_name_that_is_no_function(self, write: Callable[[str, str], Path]) -> None:
        write("my_train.py", "build = 3\nif False:\n    other = 1")
        with pytest.raises(WorkloadError, match=r"my_train.py:build: is a int; name a function"):
            load("my_train.py:build")
        with pytest.raises(WorkloadError, match=r"my_train.py:other: defines no such name"):
            load("my_train.py:other")
