"""Composite latents on disk and their statistics. As a script, this file is the stage that one or two processes run."""

import math
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from sfd.data.images import ImageBatch
from sfd.data.latents import (
    STATISTICS,
    ChannelStatistics,
    LatentDataset,
    LatentsIndex,
    channel_statistics,
    views_of,
    write_latents,
)
from sfd.data.shards import ShardReader, shard_bounds, write_index, write_shards
from sfd.data.text_tokens import (
    CaptionTexts,
    TextTokens,
    TokensIndex,
    close_tokens,
    decoded,
    write_texts,
    write_tokens,
)
from sfd.errors import UserError
from sfd.models.words import Words, stack_words
from sfd.params import LatentsParams, ReadingRuntime
from sfd.pipeline.stage import stage
from sfd.processes import barrier, rank, world_size
from sfd.seeding import generator

NUM_IMAGES = 23
PARAMS = LatentsParams(shard_size=5)
BY_TWO = ReadingRuntime(batch_size=2)
ROWS = range(NUM_IMAGES)
CPU = torch.device("cpu")
REPOSITORY = Path(__file__).parents[2]


class Images:
    """Random images, each a function of its row, stored class by class."""

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitems__(self, indices: list[int]) -> ImageBatch:
        images = [torch.randint(0, 256, (3, 8, 8), generator=generator(0, "image", index)) for index in indices]
        return ImageBatch(torch.stack(images).to(torch.uint8), torch.tensor(indices) // 8)


def encode(images: Tensor, draws: list[int]) -> tuple[Tensor, Tensor]:
    """A convolution to 6 channels plus numbered noise; features are the pixels of the patches."""
    kernel = torch.randn(6, 3, 2, 2, generator=generator(0, "kernel"))
    noise = torch.stack([torch.randn(6, 4, 4, generator=generator(0, "draw", draw)) for draw in draws])
    pixels = images.float() / 255.0
    scale = torch.tensor([1.0, 3.0, 0.1, 20.0, 1.0, 1.0])[:, None, None]
    return conv2d(pixels, kernel, stride=2) * scale + 0.1 * noise, pixels[:, :, ::2, ::2].flatten(2).transpose(1, 2)


def facts(num_views: int) -> LatentsIndex:
    channels = {"texture_channels": 4, "semantic_channels": 2, "feature_dim": 3}
    return LatentsIndex(num_views, grid=4, **channels, classes=["a", "b"], class_counts=[12, 11], networks={}, tiles=1)


def write(
    folder: Path,
    mirror: bool = True,
    params: LatentsParams = PARAMS,
    ranks: int = 1,
    batch_size: int = 2,
    num_workers: int = 0,
) -> Path:
    for number in range(ranks):
        runtime = ReadingRuntime(batch_size=batch_size, num_workers=num_workers)
        bounds = write_latents(folder, Images(), ROWS, encode, CPU, params, runtime, mirror, number, ranks)
    write_index(folder, bounds, facts(1 + mirror))
    channel_statistics(ShardReader(folder, LatentsIndex), params.statistics_images).save(folder / STATISTICS)
    return folder


def run_stage() -> None:
    """Under torchrun or alone, in a project folder."""
    torch.set_num_threads(1)
    with stage("latents", upstream=()) as s:
        folder = s.out / "shards"
        bounds = write_latents(folder, Images(), ROWS, encode, CPU, PARAMS, BY_TWO, True, rank(), world_size())
        (s.work / f"done-{rank()}").touch()
        barrier()
        assert all((s.work / f"done-{other}").exists() for other in range(world_size())), "the barrier did not hold"
        if rank() == 0:
            write_index(folder, bounds, facts(2))
            channel_statistics(ShardReader(folder, LatentsIndex), NUM_IMAGES).save(folder / STATISTICS)


def run_in_project(folder: Path, *launcher: str) -> dict[str, bytes]:
    """Runs :func:`run_stage` in a project folder; returns the files of its result."""
    from support import environment  # not in the processes that run this file as a script

    folder.mkdir()
    shutil.copy(REPOSITORY / "params.yaml", folder)
    own = {"CUDA_VISIBLE_DEVICES": "", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # nobody listens there
    command = ["python", *launcher, __file__]
    done = subprocess.run(command, cwd=folder, env=environment() | own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = folder / "results" / "latents"
    return {str(file.relative_to(result)): file.read_bytes() for file in result.rglob("*") if file.is_file()}


def test_statistics_are_the_mean_and_deviation_of_every_channel(tmp_path: Path) -> None:
    reader = ShardReader(write(tmp_path), LatentsIndex)
    statistics = channel_statistics(reader, 10_000)
    latents = torch.stack(reader.rows("latents", list(range(NUM_IMAGES)))).double()
    torch.testing.assert_close(statistics.mean, latents.mean(dim=(0, 1, 3, 4)).float())
    torch.testing.assert_close(statistics.std, latents.std(dim=(0, 1, 3, 4), unbiased=False).float())
    assert statistics.mean.shape == statistics.std.shape == (6,)
    assert float(statistics.std[3] / statistics.std[2]) > 10.0


def test_statistics_of_some_images_are_taken_from_the_whole_range_and_not_from_the_first_class(tmp_path: Path) -> None:
    bounds = shard_bounds(100, 30)
    write_shards(
        tmp_path, bounds, lambda a, b: {"latents": torch.arange(a, b).half().reshape(-1, 1, 1, 1, 1)}, range(4)
    )
    write_index(tmp_path, bounds, facts(1))
    statistics = channel_statistics(ShardReader(tmp_path, LatentsIndex), 10)
    assert float(statistics.mean) == pytest.approx(45.0)  # of 0, 10, ... 90
    assert float(statistics.std) == pytest.approx(math.sqrt(825.0))


def test_restoring_undoes_normalising() -> None:
    latent = torch.randn(2, 3, 4, 4)
    statistics = ChannelStatistics(torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 3.0, 20.0]))
    torch.testing.assert_close(statistics.restore(statistics.normalise(latent)), latent)
    assert not torch.allclose(statistics.normalise(latent), latent)


def test_a_channel_that_never_varies_is_normalised_to_zero(tmp_path: Path) -> None:
    bounds = shard_bounds(4, 4)
    write_shards(
        tmp_path, bounds, lambda a, b: {"latents": torch.full((b - a, 1, 2, 3, 3), 7.0).half()}, range(len(bounds))
    )
    write_index(tmp_path, bounds, facts(1))
    statistics = channel_statistics(ShardReader(tmp_path, LatentsIndex), 4)
    assert torch.equal(statistics.normalise(torch.full((1, 2, 3, 3), 7.0)), torch.zeros(1, 2, 3, 3))


def test_statistics_survive_the_disk(tmp_path: Path) -> None:
    statistics = ChannelStatistics(torch.randn(5), torch.rand(5))
    statistics.save(tmp_path / STATISTICS)
    loaded = ChannelStatistics.load(tmp_path / STATISTICS)
    assert torch.equal(loaded.mean, statistics.mean) and torch.equal(loaded.std, statistics.std)


def test_both_views_are_stored_where_that_keeps_the_class_and_else_one(tmp_path: Path) -> None:
    both, one = (
        ShardReader(write(tmp_path / "both"), LatentsIndex),
        ShardReader(write(tmp_path / "one", mirror=False), LatentsIndex),
    )
    assert both.rows("latents", [3])[0].shape == (2, 6, 4, 4)
    assert one.rows("latents", [3])[0].shape == (1, 6, 4, 4)
    assert len(LatentDataset(tmp_path / "both", True)) == 2 * NUM_IMAGES
    assert len(LatentDataset(tmp_path / "one", True)) == NUM_IMAGES
    assert torch.equal(both.rows("latents", [3])[0][0], one.rows("latents", [3])[0][0])


def test_the_second_latent_is_that_of_the_mirrored_image_in_fp16(tmp_path: Path) -> None:
    images, labels = Images().__getitems__([11])
    assert torch.equal(views_of(images, True)[1], images.flip(-1))
    reader = ShardReader(write(tmp_path), LatentsIndex)
    stored, features = reader.rows("latents", [11])[0], reader.rows("features", [11])[0]
    for view, pixels in enumerate((images, images.flip(-1))):
        latent, feature = encode(pixels, [22 + view])
        assert stored.dtype == features.dtype == torch.float16
        assert torch.equal(stored[view], latent[0].half())
        assert torch.equal(features[view], feature[0].half())
    assert reader.rows("labels", [11])[0] == labels[0] == 1


def test_features_are_stored_only_where_they_are_wanted(tmp_path: Path) -> None:
    without = PARAMS.model_copy(update={"store_features": False})
    write(tmp_path / "with"), write(tmp_path / "without", params=without)
    sizes = {name: (tmp_path / name / "shard-00000.safetensors").stat().st_size for name in ("with", "without")}
    assert sizes["with"] - sizes["without"] > 5 * 2 * 16 * 3 * 2 - 100
    assert LatentDataset(tmp_path / "with", True).__getitems__([0]).features is not None
    assert LatentDataset(tmp_path / "without", False).__getitems__([0]).features is None


@pytest.mark.parametrize("value", [math.nan, 1e6])
def test_a_latent_that_fp16_cannot_hold_is_refused_with_its_images(tmp_path: Path, value: float) -> None:
    def encode_badly(images: Tensor, draws: list[int]) -> tuple[Tensor, Tensor]:
        latents, features = encode(images, draws)
        latents[torch.tensor(draws) == 14, 0, 0, 0] = value
        return latents, features

    with pytest.raises(UserError, match="latent of training images 7 to 8 is not finite in fp16"):
        write_latents(tmp_path, Images(), ROWS, encode_badly, CPU, PARAMS, BY_TWO, True, 0, 1)
    assert not (tmp_path / "shard-00001.safetensors").exists()
    assert (tmp_path / "shard-00000.safetensors").exists()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_reading_processes_change_no_byte_and_a_run_that_was_ended_goes_on(tmp_path: Path, num_workers: int) -> None:
    write(tmp_path / "without"), write(tmp_path / "with", num_workers=num_workers)
    for file in (tmp_path / "with").glob("shard-0000[13].*"):
        file.unlink()
    write(tmp_path / "with", num_workers=num_workers)
    for file in (tmp_path / "without").iterdir():
        assert file.read_bytes() == (tmp_path / "with" / file.name).read_bytes(), file.name


def test_the_batch_size_does_not_change_what_is_stored_beyond_rounding(tmp_path: Path) -> None:
    small = ShardReader(write(tmp_path / "small"), LatentsIndex)
    large = ShardReader(write(tmp_path / "large", batch_size=50), LatentsIndex)
    images = list(range(NUM_IMAGES))
    for a, b in zip(small.rows("latents", images), large.rows("latents", images), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-3)


def test_the_data_set_serves_mean_0_and_deviation_1_with_the_right_classes(tmp_path: Path) -> None:
    dataset = LatentDataset(write(tmp_path), with_features=True)
    latents, labels, features, *_ = dataset.__getitems__(list(range(len(dataset))))
    assert features is not None
    assert latents.dtype == torch.float32 and features.dtype == torch.float16
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3), unbiased=False), torch.ones(6), rtol=1e-3, atol=0)
    assert torch.equal(labels, torch.arange(NUM_IMAGES).repeat_interleave(2) // 8)
    assert features.shape == (2 * NUM_IMAGES, 16, 3)


def test_samples_are_image_and_view_in_the_order_asked_for(tmp_path: Path) -> None:
    dataset = LatentDataset(write(tmp_path), with_features=True)
    latents, labels, features, *_ = dataset.__getitems__([45, 0, 7])
    assert features is not None
    for n, (image, view) in enumerate([(22, 1), (0, 0), (3, 1)]):
        raw = dataset.reader.rows("latents", [image])[0][view].float()
        torch.testing.assert_close(dataset.statistics.restore(latents)[n], raw)
        assert torch.equal(features[n], dataset.reader.rows("features", [image])[0][view])
    assert labels.tolist() == [2, 0, 0]


def letters(texts: list[str]) -> Words:
    return stack_words([torch.tensor([[float(ord(letter))] for letter in text]) for text in texts])


def captions_of(folder: Path, num_images: int = NUM_IMAGES) -> TextTokens:
    """Two captions per image: its number, and a longer text."""
    bounds = write_tokens(folder / "shards", two_texts(num_images), letters, 10, "images")
    close_tokens(folder / "shards", bounds, TokensIndex(1, 3, "", 2 * num_images, 0, []), letters(["."]))
    return TextTokens(folder / "shards", seed=0)


def two_texts(num_images: int) -> list[list[str]]:
    return [[chr(65 + image), chr(65 + image) + "bc"] for image in range(num_images)]


def texts_of(folder: Path) -> CaptionTexts:
    """The same captions, without tokens."""
    bounds = write_texts(folder / "captions", two_texts(NUM_IMAGES), 10)
    close_tokens(folder / "captions", bounds, TokensIndex(1, 3, "", 2 * NUM_IMAGES, 0, []), letters(["."]))
    return CaptionTexts(folder / "captions", seed=0)


def test_each_image_comes_with_one_of_its_captions_which_every_epoch_draws_anew(tmp_path: Path) -> None:
    folder = write(tmp_path / "latents")
    dataset = LatentDataset(folder, with_features=False, text=captions_of(tmp_path / "text"))
    plain = LatentDataset(folder, with_features=False)
    assert dataset.counts_epochs and not plain.counts_epochs and plain.__getitems__([0]).words is None
    drawn = []
    for epoch in range(8):
        batch = dataset.__getitems__([epoch * len(dataset) + index for index in (45, 0, 7)])
        assert torch.equal(batch.latents, plain.__getitems__([45, 0, 7]).latents)
        assert batch.words is not None and batch.words.tokens[:, 0, 0].tolist() == [65 + 22, 65, 65 + 3]
        drawn.append(batch.words.mask.sum(dim=1).tolist())
    assert {length for lengths in drawn for length in lengths} == {1, 3} and len({tuple(each) for each in drawn}) > 2
    assert dataset.null_words is not None and dataset.null_words.tokens.tolist() == [[[float(ord("."))]]]
    with pytest.raises(UserError, match="has captions of 5 images, but .* has 23 images; run `dvc repro`"):
        LatentDataset(folder, with_features=False, text=captions_of(tmp_path / "fewer", 5))


def test_without_stored_tokens_each_image_comes_with_the_text_whose_tokens_it_had(tmp_path: Path) -> None:
    folder = write(tmp_path / "latents")
    stored = LatentDataset(folder, with_features=False, text=captions_of(tmp_path / "text"))
    dataset = LatentDataset(folder, with_features=False, text=texts_of(tmp_path / "text"))
    assert dataset.counts_epochs and dataset.text_facts == stored.text_facts
    assert dataset.null_words is not None and stored.null_words is not None
    assert torch.equal(dataset.null_words.tokens, stored.null_words.tokens)
    for epoch in range(8):
        numbers = [epoch * len(dataset) + index for index in (45, 0, 7)]
        one, other = stored.__getitems__(numbers), dataset.__getitems__(numbers)
        assert one.texts is None and other.words is None and torch.equal(one.latents, other.latents)
        assert one.words is not None and other.texts is not None
        encoded = letters(decoded(other.texts))
        assert torch.equal(encoded.tokens.half(), one.words.tokens) and torch.equal(encoded.mask, one.words.mask)


def test_a_damaged_shard_is_named_by_the_check_of_the_data_set(tmp_path: Path) -> None:
    LatentDataset(write(tmp_path), with_features=True).reader.check()
    file = tmp_path / "shard-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-00003\.safetensors is missing or damaged"):
        LatentDataset(tmp_path, with_features=True).reader.check()


def test_two_real_processes_publish_the_bytes_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    one = run_in_project(tmp_path / "one")
    two = run_in_project(tmp_path / "two", *torchrun, "--master_port", str(port))
    assert f"shards/{STATISTICS}" in one and "fingerprint.json" in one
    assert one == two


if __name__ == "__main__":
    run_stage()
