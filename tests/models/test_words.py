"""Words: texts of several lengths in one tensor."""

import torch

from sfd.models.words import Words, join_words, stack_words


def example() -> Words:
    return stack_words([torch.full((length, 2), float(length)) for length in (1, 3, 2)])


def test_texts_are_padded_with_zeros_to_the_longest() -> None:
    words = example()
    assert (words.num_texts, words.length, words.width) == (3, 3, 2)
    assert words.mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert words.tokens[~words.mask].abs().sum() == 0
    assert words.tokens[2, :2].tolist() == [[2, 2], [2, 2]]


def test_texts_are_selected_by_slice_index_and_mask() -> None:
    words = example()
    for index in (slice(1, None), torch.tensor([1, 2]), torch.tensor([False, True, True])):
        chosen = words.select(index)
        assert torch.equal(chosen.tokens, words.tokens[1:]) and torch.equal(chosen.mask, words.mask[1:])


def test_some_texts_are_replaced_by_the_null_text() -> None:
    null = stack_words([torch.full((4, 2), -1.0)])
    words = example().replaced(torch.tensor([False, True, False]), null)
    assert words.length == 4
    assert torch.equal(words.tokens[1], null.tokens[0]) and words.mask[1].all()
    assert torch.equal(words.tokens[0, :3], example().tokens[0]) and words.mask[0].tolist() == [
        True,
        False,
        False,
        False,
    ]
    assert torch.equal(null.repeated(3).tokens[2], null.tokens[0])


def test_batches_of_several_lengths_are_joined() -> None:
    joined = join_words([example(), stack_words([torch.ones(5, 2)])])
    assert joined.tokens.shape == (4, 5, 2) and joined.mask.sum(1).tolist() == [1, 3, 2, 5]


def test_words_move_and_only_their_tokens_change_type() -> None:
    words = example().to("cpu", torch.float16)
    assert words.tokens.dtype == torch.float16 and words.mask.dtype == torch.bool
