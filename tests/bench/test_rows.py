"""The rows of the measurements: documents that fill them, the same in every process."""

import numpy as np
import pytest

from bench.rows import make_rows


@pytest.mark.parametrize("length", [64, 1000, 2048])
def test_documents_fill_the_rows_one_after_the_other(length):
    rows = make_rows(3, length, 50, packed=True)
    assert rows.tokens.shape == (3, length) and rows.tokens.min() >= 0 and rows.tokens.max() < 50
    for segments, positions in zip(rows.segments, rows.positions, strict=True):
        assert segments[0] == 1 and segments[-1] > 1 and set(np.diff(segments)) == {0, 1}
        starts = np.flatnonzero(np.diff(segments, prepend=0))
        assert np.array_equal(positions, np.arange(length) - starts[segments - 1])


def test_a_row_that_is_not_packed_is_one_document():
    rows = make_rows(2, 10, 50, packed=False)
    assert (rows.segments == 1).all() and (rows.positions == np.arange(10)).all()


@pytest.mark.parametrize("packed", [True, False])
def test_a_token_trains_where_the_next_one_is_of_its_document(packed):
    rows = make_rows(2, 100, 50, packed)
    for row in range(2):
        for place in range(100):
            followed = place < 99 and rows.segments[row, place + 1] == rows.segments[row, place]
            assert rows.trained[row, place] == followed
            assert not followed or rows.following[row, place] == rows.tokens[row, place + 1]


def test_pairs_are_those_that_see_each_other():
    rows = make_rows(2, 100, 50, packed=True)
    same = rows.segments[:, :, None] == rows.segments[:, None, :]
    assert rows.pairs == np.tril(same).sum()


def test_the_same_numbers_make_the_same_rows():
    one, other = make_rows(2, 100, 50, packed=True), make_rows(2, 100, 50, packed=True)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
