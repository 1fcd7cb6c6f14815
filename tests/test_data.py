"""Data files: their bytes, who finds them, and what several writers at once leave behind."""

import functools
import gzip
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets, transforms
from torchvision.datasets import ImageFolder

from stepmark.data import cache
from stepmark.data.cache import data_root, publish
from stepmark.data.idx import ImageSet, generate, image_set
from stepmark.data.jpeg import generate_jpeg_folder
from stepmark.data.tensors import Repeated, class_images, class_vectors, markov_tokens
from stepmark.errors import WorkloadError

TO_TENSOR = transforms.ToTensor()


@pytest.fixture(autouse=True)
def _own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPMARK_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("STEPMARK_DOWNLOAD", raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def small_set(kind: type[datasets.MNIST] = datasets.MNIST) -> ImageSet:
    return image_set(
        kind, train_transform=TO_TENSOR, valid_transform=TO_TENSOR, num_train=60, num_valid=20
    )


def write_real_files(raw: Path, num_images: int, *, packed: bool = False) -> None:
    """Files as MNIST's authors wrote them: every pixel of image i is i, every label i % 10."""
    raw.mkdir(parents=True)
    pixels = np.arange(num_images, dtype=np.uint8).repeat(28 * 28).tobytes()
    labels = bytes(i % 10 for i in range(num_images))
    for prefix in ("train", "t10k"):
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">4I", 2051, num_images, 28, 28) + pixels,
            f"{prefix}-labels-idx1-ubyte": struct.pack(">2I", 2049, num_images) + labels,
        }
        for name, content in files.items():
            if packed:
                (raw / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (raw / name).write_bytes(content)


class TestDataRoot:
    def test_the_environment_variable_wins(self, tmp_path: Path) -> None:
        assert data_root() == tmp_path / "cache"

    def test_linux_uses_the_xdg_cache_and_ignores_a_relative_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("STEPMARK_DATA")
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert data_root() == tmp_path / "xdg" / "stepmark"
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        assert data_root() == tmp_path / ".cache" / "stepmark"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert data_root() == tmp_path / ".cache" / "stepmark"

    def test_macos_uses_library_caches(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("STEPMARK_DATA")
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert data_root() == tmp_path / "Library" / "Caches" / "stepmark"


class TestPublish:
    def test_an_interrupted_writer_leaves_nothing(self, tmp_path: Path) -> None:
        def write(folder: Path) -> None:
            (folder / "half").write_text("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path / "set" / "name", write)
        assert list((tmp_path / "set").iterdir()) == []

    def test_what_is_there_is_not_written_again(self, tmp_path: Path) -> None:
        publish(tmp_path / "name", lambda folder: (folder / "a").touch())
        publish(tmp_path / "name", lambda folder: pytest.fail("was written again"))
        assert [path.name for path in (tmp_path / "name").iterdir()] == ["a"]

    def test_the_later_of_two_writers_keeps_the_files_of_the_first(self, tmp_path: Path) -> None:
        target = tmp_path / "name"

        def write(folder: Path) -> None:
            (folder / "later").touch()
            publish(target, lambda folder: (folder / "first").touch())

        publish(target, write)
        assert [path.name for path in target.iterdir()] == ["first"]
        assert list(tmp_path.glob(".partial-*")) == []

    def test_leftovers_of_killed_writers_go_when_old(self, tmp_path: Path) -> None:
        old, young = tmp_path / ".partial-old", tmp_path / ".partial-young"
        old.mkdir()
        young.mkdir()
        hours_ago = time.time() - 2 * cache._STALE_S
        os.utime(old, (hours_ago, hours_ago))
        publish(tmp_path / "name", lambda folder: None)
        assert not old.exists()
        assert young.exists()

    def test_a_killed_writer_leaves_no_half_set_under_the_name(self, tmp_path: Path) -> None:
        script = (
            "import os, signal, sys; from pathlib import Path\n"
            "from stepmark.data.cache import publish\n"
            "def write(folder):\n"
            "    (folder / 'half').touch()\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "publish(Path(sys.argv[1]), write)\n"
        )
        target = tmp_path / "name"
        done = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert not target.exists()
        publish(target, lambda folder: (folder / "whole").touch())
        assert [path.name for path in target.iterdir()] == ["whole"]

    def test_an_unwritable_directory_names_the_remedy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("STEPMARK_DATA", str(tmp_path / "file" / "below"))
        with pytest.raises(WorkloadError, match=r"cannot write data there.*set STEPMARK_DATA"):
            small_set()


class TestGeneratedIdx:
    def test_files_have_the_sizes_and_magic_numbers_of_the_originals(self) -> None:
        raw = generate("MNIST", num_train=60, num_valid=20) / "MNIST" / "raw"
        for prefix, count in (("train", 60), ("t10k", 20)):
            images = (raw / f"{prefix}-images-idx3-ubyte").read_bytes()
            labels = (raw / f"{prefix}-labels-idx1-ubyte").read_bytes()
            assert images[:16] == bytes.fromhex("00000803") + struct.pack(">3I", count, 28, 28)
            assert len(images) == 16 + count * 28 * 28
            assert labels[:8] == bytes.fromhex("00000801") + struct.pack(">I", count)
            assert len(labels) == 8 + count
            assert max(labels[8:]) <= 9

    def test_the_full_set_is_as_large_as_the_original_and_made_in_seconds(self) -> None:
        start = time.perf_counter()
        home = generate("FashionMNIST", num_train=60_000, num_valid=10_000)
        assert time.perf_counter() - start < 10  # 0.3 s on an idle machine
        raw = home / "FashionMNIST" / "raw"
        assert (raw / "train-images-idx3-ubyte").stat().st_size == 47_040_016
        assert (raw / "t10k-images-idx3-ubyte").stat().st_size == 7_840_016
        assert (raw / "train-labels-idx1-ubyte").stat().st_size == 60_008
        assert (raw / "t10k-labels-idx1-ubyte").stat().st_size == 10_008

    def test_torchvision_reads_them(self) -> None:
        images = small_set(datasets.FashionMNIST)
        assert images.source == "FashionMNIST (generated)"
        assert type(images.train) is datasets.FashionMNIST
        assert (len(images.train), len(images.valid)) == (60, 20)
        image, label = images.train[0]
        assert image.shape == (1, 28, 28)
        assert 0 <= label <= 9

    def test_the_same_bytes_come_out_again_and_other_ones_for_the_other_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = small_set().train.data
        other = small_set(datasets.FashionMNIST).train.data
        monkeypatch.setenv("STEPMARK_DATA", str(tmp_path / "elsewhere"))
        assert torch.equal(first, small_set().train.data)
        assert not torch.equal(first, other)

    def test_validation_images_are_told_apart_by_the_means_of_training_images(self) -> None:
        home = generate("MNIST", num_train=2_000, num_valid=500)
        train = datasets.MNIST(home, train=True)
        valid = datasets.MNIST(home, train=False)
        means = torch.stack(
            [train.data[train.targets == c].float().mean(0).flatten() for c in range(10)]
        )
        nearest = torch.cdist(valid.data.float().flatten(1), means).argmin(1)
        assert (nearest == valid.targets).float().mean() > 0.7

    def test_two_processes_at_once_both_succeed(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        barrier = context.Barrier(3)

        def work() -> None:
            barrier.wait()
            generate("MNIST", num_train=20_000, num_valid=100)

        processes = [context.Process(target=work) for _ in range(2)]
        for process in processes:
            process.start()
        barrier.wait()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        home = generate("MNIST", num_train=20_000, num_valid=100)
        assert len(datasets.MNIST(home, train=True)) == 20_000
        assert list((tmp_path / "cache").rglob(".partial-*")) == []


class TestRealIdx:
    def test_real_files_in_the_data_directory_are_preferred(self, tmp_path: Path) -> None:
        write_real_files(tmp_path / "cache" / "MNIST" / "raw", 30)
        images = small_set()
        assert images.source == "MNIST"
        assert (len(images.train), len(images.valid)) == (30, 30)
        image, label = images.train[12]
        assert image.unique().tolist() == pytest.approx([12 / 255])
        assert label == 2
        assert not (tmp_path / "cache" / "generated").exists()

    def test_real_files_in_data_below_the_current_directory_are_found(self) -> None:
        write_real_files(Path("data/FashionMNIST/raw"), 30)
        assert small_set(datasets.FashionMNIST).source == "FashionMNIST"
        assert small_set(datasets.MNIST).source == "MNIST (generated)"

    def test_packed_files_are_unpacked(self, tmp_path: Path) -> None:
        raw = tmp_path / "cache" / "MNIST" / "raw"
        write_real_files(raw, 30, packed=True)
        images = small_set()
        assert (images.source, len(images.train)) == ("MNIST", 30)
        assert len(list(raw.iterdir())) == 8

    def test_a_truncated_packed_file_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        raw = tmp_path / "cache" / "MNIST" / "raw"
        write_real_files(raw, 30, packed=True)
        packed = raw / "t10k-labels-idx1-ubyte.gz"
        packed.write_bytes(packed.read_bytes()[:-10])
        with pytest.raises(WorkloadError, match=r"t10k-labels-idx1-ubyte\.gz: cannot be unpacked"):
            small_set()
        assert not (raw / "t10k-labels-idx1-ubyte").exists()

    @pytest.mark.parametrize("size", [0, 10, 1_000])
    def test_a_truncated_file_is_an_error_that_names_its_directory(
        self, size: int, tmp_path: Path
    ) -> None:
        raw = tmp_path / "cache" / "MNIST" / "raw"
        write_real_files(raw, 30)
        os.truncate(raw / "train-images-idx3-ubyte", size)
        with pytest.raises(WorkloadError, match=r"MNIST/raw: its files are damaged"):
            small_set()

    def test_an_incomplete_real_set_is_not_used(self, tmp_path: Path) -> None:
        raw = tmp_path / "cache" / "MNIST" / "raw"
        write_real_files(raw, 30)
        (raw / "t10k-labels-idx1-ubyte").unlink()
        assert small_set().source == "MNIST (generated)"


class TestDownload:
    @pytest.fixture(autouse=True)
    def _mirror(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """A web server on this machine, which torchvision's own download code reads."""
        handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "mirror")
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            monkeypatch.setenv("STEPMARK_DOWNLOAD", "1")
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            mirror = f"http://127.0.0.1:{server.server_port}/"
            monkeypatch.setattr(datasets.MNIST, "mirrors", [mirror])
            unchecked = [(name, None) for name, _ in datasets.MNIST.resources]
            monkeypatch.setattr(datasets.MNIST, "resources", unchecked)
            yield
            server.shutdown()

    def test_downloaded_files_are_real_and_stay(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_real_files(tmp_path / "mirror", 30, packed=True)
        assert small_set().source == "MNIST"
        assert (tmp_path / "cache" / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file()
        monkeypatch.delenv("STEPMARK_DOWNLOAD")
        images = small_set()
        assert (images.source, len(images.train)) == ("MNIST", 30)

    def test_a_failed_download_says_what_to_do_and_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(
            WorkloadError, match=r"download failed; put train-images.* or leave out --download"
        ):
            small_set()
        assert list((tmp_path / "cache").iterdir()) == []

    def test_an_incomplete_set_in_the_way_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "cache" / "MNIST" / "raw").mkdir(parents=True)
        with pytest.raises(WorkloadError, match=r"without all its files; remove it"):
            small_set()


class TestJpeg:
    def test_image_folder_reads_the_classes_and_sizes(self) -> None:
        folder = generate_jpeg_folder(num_classes=3, num_train=4, num_valid=2)
        train, valid = ImageFolder(folder / "train"), ImageFolder(folder / "valid")
        assert (len(train), len(valid)) == (12, 6)
        assert train.targets == [0] * 4 + [1] * 4 + [2] * 4
        image, _ = train[0]
        assert image.size == (400, 300)
        assert image.mode == "RGB"

    def test_files_are_jpeg_and_as_large_as_photographs(self) -> None:
        folder = generate_jpeg_folder(num_classes=1, num_train=2, num_valid=1)
        for path in folder.rglob("*.jpg"):
            assert path.read_bytes()[:3] == b"\xff\xd8\xff"
            assert 20_000 < path.stat().st_size < 100_000


class TestTensors:
    def test_a_repeated_dataset_goes_round(self) -> None:
        repeated = Repeated([10, 11, 12], 7)  # type: ignore[arg-type]
        assert len(repeated) == 7
        assert list(repeated) == [10, 11, 12, 10, 11, 12, 10]
        with pytest.raises(IndexError, match="there are 7 samples"):
            repeated[7]

    def test_global_random_state_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        class_vectors(num_samples=4, num_classes=2, num_features=3, seed=1)
        class_images(num_samples=4, num_classes=2, size=8, seed=1)
        markov_tokens(num_sequences=2, length=4, vocab=8, seed=1)
        assert torch.equal(before, torch.get_rng_state())

    def test_another_seed_gives_other_samples_of_the_same_classes(self) -> None:
        first, labels = class_images(num_samples=20, num_classes=10, size=16, seed=1)
        again, _ = class_images(num_samples=20, num_classes=10, size=16, seed=1)
        other, _ = class_images(num_samples=20, num_classes=10, size=16, seed=2)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        nearest = torch.cdist(other.flatten(1), first.flatten(1)).argmin(1)
        assert torch.equal(labels[nearest], labels)

    def test_tokens_follow_one_of_four_successors_with_the_stated_probabilities(self) -> None:
        tokens = markov_tokens(num_sequences=500, length=101, vocab=8, seed=1)
        assert tokens.shape == (500, 101)
        counts = torch.zeros(8, 8)
        pairs = torch.stack([tokens[:, :-1].flatten(), tokens[:, 1:].flatten()])
        counts.index_put_(tuple(pairs), torch.ones(pairs.shape[1]), accumulate=True)
        assert ((counts > 0).sum(1) <= 4).all()
        chances = counts / counts.sum(1, keepdim=True)
        assert (chances.max(1).values > 0.65).all()
