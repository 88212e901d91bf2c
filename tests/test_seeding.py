"""Seeds: frozen values, independence, and no trace in the global generator."""

import pytest
import torch

from sfd.seeding import derive_seed, generator, seeded_initialisation


def test_seeds_are_frozen_because_every_result_hangs_on_them() -> None:
    assert derive_seed(0, "diffusion/step", 0) == 6901991951159605469
    assert derive_seed(1, "sample/image", 42) == 13820330385868314


def test_seed_purpose_and_index_each_make_another_seed() -> None:
    triples = [(seed, purpose, index) for seed in (0, 1, 11) for purpose in ("a", "b", "a/1") for index in (0, 1, 11)]
    seeds = {derive_seed(*triple) for triple in triples}
    assert len(seeds) == len(triples)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_generator_repeats_itself_and_differs_from_its_neighbours() -> None:
    draws = [torch.randn(100, generator=generator(0, "noise", index)) for index in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert abs(float(torch.corrcoef(torch.stack(draws[1:]))[0, 1])) < 0.4


def test_seeded_initialisation_repeats_itself_whatever_the_global_state() -> None:
    weights = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        with seeded_initialisation(0, "layer"):
            weights.append(torch.nn.Linear(3, 3).weight)
    with seeded_initialisation(1, "layer"):
        weights.append(torch.nn.Linear(3, 3).weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_global_generator_is_left_as_it_was_even_after_an_error() -> None:
    before = torch.get_rng_state()
    derive_seed(0, "noise")
    generator(0, "noise")
    with pytest.raises(RuntimeError, match="in the middle"), seeded_initialisation(0, "layer"):
        torch.rand(5)
        raise RuntimeError("in the middle")
    assert torch.equal(torch.get_rng_state(), before)
