"""Attention maps, against brute force and constructions by hand."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nulltext.errors import OptionError, PromptError
from nulltext.words.alignment import align_words, attention_map, check_edit, token_weights
from support.vocabularies import VOCABULARY, prompt, texts

sentences = st.lists(st.sampled_from(VOCABULARY), max_size=7).map(" ".join)
# --- attention maps -----------------------------------------------------------------------------


def padding_block(length: int, n: int, m: int) -> torch.Tensor:
    """The rows of n source paddings and the columns of m target paddings, at the prompts' end."""
    block = torch.zeros(n, m)
    for j in range(length - m, length):
        i = j if j >= length - n else length - n
        block[i - (length - n), j - (length - m)] = 1
    return block


@given(sentences)
@settings(max_examples=40, deadline=None)
def test_identical_prompts_give_the_identity(text: str) -> None:
    read = prompt(text, 100)
    for alignment in ("auto", "replace", "refine"):
        carried = attention_map(read, read, alignment)
        assert torch.equal(carried.mapping, torch.eye(100))
        assert torch.equal(carried.gate, torch.ones(100))


@given(sentences, sentences, st.sampled_from(["auto", "refine"]), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_shares_add_up(old: str, new: str, alignment, tight_old: bool, tight_new: bool) -> None:
    # The context is as tight as asked: one prompt, or both, may be of the maximum length.
    ends = prompt(old, 100).end_of_text, prompt(new, 100).end_of_text
    assume(not (tight_old and ends[0] < ends[1]) and not (tight_new and ends[1] < ends[0]))
    length = max(*ends, 2) + (1 if tight_old or tight_new else 9)
    source, target = prompt(old, length), prompt(new, length)
    carried = attention_map(source, target, alignment)
    assert carried.mapping.dtype == carried.gate.dtype == torch.float32
    assert set(carried.gate.tolist()) <= {0.0, 1.0}
    pairs = align_words(texts(source), texts(target))
    rows, columns = torch.ones(length), torch.ones(length)
    if source.end_of_text == length - 1:
        columns[target.end_of_text + 1 :] = 0
    for i, j in pairs:
        equal = i is not None and j is not None and texts(source)[i] == texts(target)[j]
        carries = equal or (alignment == "auto" and i is not None and j is not None)
        if i is not None and not carries:
            rows[list(source.words[i].tokens)] = 0
        if j is not None and not carries:
            columns[list(target.words[j].tokens)] = 0
    sums, start = carried.mapping.sum(dim=1), source.end_of_text + 1
    # Words give all they have; each padding takes one. atol: float32, at most 100 summands
    torch.testing.assert_close(sums[:start], rows[:start], atol=1e-5, rtol=0)
    into_padding = carried.mapping.sum(dim=0)[target.end_of_text + 1 :]
    expected = columns[target.end_of_text + 1 :]
    torch.testing.assert_close(into_padding, expected, atol=1e-5, rtol=0)
    assert torch.equal(carried.gate, columns)
    assert torch.equal(carried.mapping.amax(dim=0) > 0, carried.gate == 1)


def test_a_word_swap_of_equal_spans_goes_token_by_token() -> None:
    source, target = prompt("a cat on a sofa"), prompt("a dog on a sofa")
    carried = attention_map(source, target)
    assert torch.equal(carried.mapping, torch.eye(20))
    assert carried.gate.min() == 1
    refined = attention_map(source, target, "refine")
    assert refined.gate.tolist() == [1, 1, 0, *[1] * 17]
    assert refined.mapping[2, :].sum() == refined.mapping[:, 2].sum() == 0


@pytest.mark.parametrize("alignment", ["auto", "replace"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_word_swap_of_unequal_spans_shares_the_mass(alignment, swapped: bool) -> None:
    prompts = [prompt("a cat on a sofa"), prompt("a hippopotamus on a sofa")]
    source, target = prompts[::-1] if swapped else prompts
    s, t = (len(read.words[1].tokens) for read in (source, target))
    assert {s, t} == {1, max(s, t)}
    assert max(s, t) > 3
    expected = torch.zeros(20, 20)
    expected[0, 0] = expected[1, 1] = 1
    expected[2 : 2 + s, 2 : 2 + t] = 1 / t
    rest = torch.arange(4)  # on, a, sofa, the end of text
    expected[rest + 2 + s, rest + 2 + t] = 1
    expected[6 + s :, 6 + t :] = padding_block(20, 14 - s, 14 - t)
    carried = attention_map(source, target, alignment)
    torch.testing.assert_close(carried.mapping, expected, atol=1e-6, rtol=0)  # float32
    assert torch.equal(carried.gate, torch.ones(20))
    # What the words had, the words have; the editor scales away what the paddings gained or lost.
    rows = torch.rand(7, 20, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    ends = source.end_of_text + 1, target.end_of_text + 1
    had, have = rows[:, : ends[0]].sum(dim=1), (rows @ carried.mapping)[:, : ends[1]].sum(dim=1)
    torch.testing.assert_close(have, had, atol=1e-6, rtol=0)  # float32


def test_inserted_words_keep_their_own_attention() -> None:
    source, target = prompt("a cat on a sofa"), prompt("a red cat on a dark sofa")
    for alignment in ("auto", "refine"):
        carried = attention_map(source, target, alignment)
        assert (carried.gate == 0).nonzero().flatten().tolist() == [2, 6]
        took = {j: int(carried.mapping[:, j].argmax()) for j in (0, 1, 3, 4, 5, 7, 8)}
        assert took == {0: 0, 1: 1, 3: 2, 4: 3, 5: 4, 7: 5, 8: 6}


ADDED_AND_REMOVED = {
    "added": ("a [] cat on a sofa", "a [red] cat on a sofa"),
    "a phrase added": ("a cat [] on a sofa", "a cat [with a xylophone] on a sofa"),
    "a phrase added at the end": ("a cat []", "a cat [on a very dark sofa]"),
    "removed": ("a [red] cat on a sofa", "a [] cat on a sofa"),
    "a phrase removed": ("a cat [and a hippopotamus] on a sofa", "a cat [] on a sofa"),
    "more added than removed": (
        "a [red] cat on a [] sofa",
        "a [] cat on a [very dark and bright] sofa",
    ),
    "more removed than added": (
        "a [very bright red] cat on a [] sofa",
        "a [] cat on a [dark] sofa",
    ),
    "as many": ("a [red] cat on a [] sofa", "a [] cat on a [red] sofa"),
}


@pytest.mark.parametrize(("old", "new"), ADDED_AND_REMOVED.values(), ids=ADDED_AND_REMOVED)
@pytest.mark.parametrize("alignment", ["auto", "refine"])
def test_what_words_have_in_common_takes_the_sources_attention(old, new, alignment) -> None:
    """By index, as the published code gathers rows: which source token each target token takes.

    Square brackets mark what only one of the prompts has. -1: the target's own attention.
    """
    length = 40
    source, target = (prompt(text.replace("[", "").replace("]", ""), length) for text in (old, new))

    def common(text: str, read) -> list[int]:
        """Positions of the start, the words outside brackets and the end of text."""
        found, words, inside = [0], iter(read.words), False
        for part in text.replace("[", " [ ").replace("]", " ] ").split():
            if part in "[]":
                inside = part == "["
                continue
            word = next(words)
            found += [] if inside else word.tokens
        return [*found, read.end_of_text]

    takes = torch.full((length,), -1)
    takes[common(new, target)] = torch.tensor(common(old, source))
    for j in range(target.end_of_text + 1, length):
        takes[j] = max(j, source.end_of_text + 1)
    carried = attention_map(source, target, alignment)
    rows, own = torch.rand(2, 7, length, generator=torch.Generator().manual_seed(0)).softmax(-1)
    got = carried.gate * (rows @ carried.mapping) + (1 - carried.gate) * own
    expected = torch.where(takes >= 0, rows[:, takes.clamp(min=0)], own)
    torch.testing.assert_close(got, expected, atol=1e-7, rtol=0)  # float32, one summand


def test_repeated_words_go_to_their_own_repetition() -> None:
    carried = attention_map(prompt("a cat and a cat"), prompt("a cat and a black cat"))
    assert carried.gate[:9].tolist() == [1, 1, 1, 1, 1, 0, 1, 1, 1]
    assert carried.mapping[5, 6] == carried.mapping[2, 2] == 1


def test_equal_words_of_other_spelling_still_share_the_mass() -> None:
    source, target = prompt("the dog's"), prompt("The DOG’S")
    assert len(source.words[1].tokens) != len(target.words[1].tokens)
    carried = attention_map(source, target, "refine")
    assert torch.equal(carried.gate, torch.ones(20))
    shares = carried.mapping.sum(dim=1)[: source.end_of_text + 1]
    torch.testing.assert_close(shares, torch.ones_like(shares), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("n", "m"), [*product(range(4), range(4)), (17, 5), (5, 17), (13, 7)])
def test_paddings_of_every_length(n: int, m: int) -> None:
    source, target = (prompt(" ".join(["cat"] * (18 - pads))) for pads in (n, m))
    carried = attention_map(source, target)
    block = carried.mapping[20 - n :, 20 - m :]
    if n:
        assert torch.equal(block, padding_block(20, n, m))
    assert carried.gate[20 - m :].tolist() == [float(n > 0)] * m
    if not m:
        assert carried.mapping[20 - n :].sum() == 0


def test_replace_pairs_by_position() -> None:
    source, target = prompt("a red cat"), prompt("red dog a")
    carried = attention_map(source, target, "replace")
    assert torch.equal(carried.mapping, torch.eye(20))
    assert not torch.equal(attention_map(source, target).mapping, carried.mapping)


def test_replace_demands_equally_many_words() -> None:
    with pytest.raises(PromptError) as caught:
        attention_map(prompt("a cat"), prompt("a black cat"), "replace")
    assert '"a cat" has 2 words' in str(caught.value)
    assert '"a black cat" has 3' in str(caught.value)
    with pytest.raises(OptionError, match="'swap'"):
        attention_map(prompt("a cat"), prompt("a dog"), "swap")  # type: ignore[arg-type]


# --- weights and useless edits ------------------------------------------------------------------


def test_weights_stand_at_the_tokens_of_their_words() -> None:
    read = prompt("a hippopotamus on a dark sofa")
    weights = token_weights(read, {"Hippopotamus": 2.5, "dark sofa": -1, "a": 0})
    expected = torch.ones(20)
    spans = [list(word.tokens) for word in read.words]
    expected[spans[1]] = 2.5
    expected[spans[4] + spans[5]] = -1
    expected[spans[0] + spans[3]] = 0
    assert weights.dtype == torch.float32
    assert torch.equal(weights, expected)
    assert torch.equal(token_weights(read, {}), torch.ones(20))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf"), 1e39, 10**400])
def test_a_weight_is_finite(factor: float) -> None:
    with pytest.raises(OptionError, match="weight of 'cat'"):
        token_weights(prompt("a cat"), {"cat": factor})


def test_a_weight_needs_its_word() -> None:
    with pytest.raises(PromptError, match="'dog' is not a word"):
        token_weights(prompt("a cat"), {"dog": 2.0})


def test_an_edit_must_change_something() -> None:
    source = prompt("a cat")
    with pytest.raises(PromptError, match="says the same"):
        check_edit(source, prompt("A  CAT"), reweights=False)
    check_edit(source, prompt("A  CAT"), reweights=True)
    check_edit(source, prompt("a dog"), reweights=False)
