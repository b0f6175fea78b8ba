"""Vectors survive the disk as bfloat16, and any list of numbers becomes a matrix or is refused by row."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datapipe.errors import VectorError
from datapipe.storage.vectors import (
    VectorInfo,
    decode,
    encode,
    normalise,
    to_matrix,
    vector_field,
    vector_info,
    vector_lengths,
)

shapes = st.tuples(st.integers(0, 6), st.integers(1, 9))
sizes = st.tuples(st.integers(1, 40), st.integers(1, 70))
matrices = hnp.arrays(np.float32, shapes, elements=st.floats(width=32))
finite = hnp.arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def test_a_vector_is_two_bytes_a_number_and_reads_back() -> None:
    column = encode(np.array([[1.0, -2.5, 0.0]], np.float32))
    assert column.to_pylist() == [bytes([0x80, 0x3F, 0x20, 0xC0, 0x00, 0x00])]
    assert decode(column).tolist() == [[1.0, -2.5, 0.0]]


@given(matrix=finite)
def test_the_relative_error_of_the_codec_is_at_most_one_in_256(matrix: np.ndarray) -> None:
    exact = matrix.astype(np.float64)
    error = np.abs(decode(encode(matrix)).astype(np.float64) - exact)
    tiny, largest = 2.0**-126, (2 - 2.0**-8) * 2.0**127
    normal = (np.abs(exact) >= tiny) & (np.abs(exact) < largest)
    assert (error[normal] <= 2.0**-8 * np.abs(exact[normal])).all()
    assert (error[np.abs(exact) < tiny] <= tiny * 2.0**-7).all()


@given(matrix=matrices)
def test_decoded_vectors_encode_to_themselves(matrix: np.ndarray) -> None:
    once = encode(matrix)
    assert encode(decode(once)).equals(once)


@given(matrix=matrices)
def test_the_codec_rounds_as_torch_does(matrix: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    expected = torch.from_numpy(matrix).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(decode(encode(matrix)), expected, equal_nan=True)


def test_ties_go_to_even_and_what_is_too_large_becomes_infinite() -> None:
    bits = np.array([[0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7FFFFFFF, 0xFFFFFFFF]], np.uint32)
    found = np.frombuffer(encode(bits.view(np.float32)).to_pylist()[0], "<u2").tolist()
    assert found == [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7FC0, 0x7FC0]


@given(matrix=matrices, start=st.integers(0, 6))
def test_slices_and_chunks_decode_like_the_whole(matrix: np.ndarray, start: int) -> None:
    column = encode(matrix)
    whole = decode(column).view(np.uint32)
    assert (decode(column[start:]).view(np.uint32) == whole[start:]).all()
    chunks = pa.chunked_array([column[:start], column[start:]], column.type)
    assert (decode(chunks).view(np.uint32) == whole).all()


def test_a_field_tells_whose_vectors_it_holds() -> None:
    field = vector_field("emb", dim=384, model="minilm", digest="ab12", normalised=True)
    assert field.type == pa.binary(768)
    assert vector_info(field) == VectorInfo(dim=384, model="minilm", digest="ab12", normalised=True)


def told(**changes: str) -> pa.Field:
    metadata = {"dtype": "bfloat16", "dim": "2", "model": "", "digest": "", "normalised": "true", **changes}
    return pa.field("x", pa.binary(4), metadata=metadata)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (pa.field("x", pa.binary(4)), "column 'x' holds no encoded vectors: it lacks dtype, dim, model, digest"),
        (
            vector_field("x", dim=2, model="m", digest="", normalised=False).with_type(pa.string()),
            "column 'x' holds no encoded vectors: it is string",
        ),
        (
            vector_field("x", dim=2, model="m", digest="", normalised=False).with_type(pa.binary(8)),
            r"column 'x' says it holds bfloat16 of dim 2, but it is fixed_size_binary\[8\]",
        ),
        (told(dtype="float16"), "column 'x' says it holds float16 of dim 2"),
        (told(normalised="1"), "column 'x' says normalised = 1, not true or false"),
    ],
    ids=["no metadata", "no bytes", "other width", "other dtype", "no truth"],
)
def test_a_field_that_contradicts_itself_is_refused(field: pa.Field, message: str) -> None:
    with pytest.raises(VectorError, match=message):
        vector_info(field)


@given(matrix=hnp.arrays(np.float16, shapes, elements=st.floats(width=16)), start=st.integers(0, 6))
def test_lists_of_any_kind_and_width_become_the_same_matrix(matrix: np.ndarray, start: int) -> None:
    rows, dim = matrix.shape
    expected = matrix.astype(np.float32)[start:]
    for width in (np.float16, np.float32, np.float64):
        values = pa.array(matrix.astype(width).ravel())
        offsets = np.arange(rows + 1) * dim
        kinds = [
            pa.FixedSizeListArray.from_arrays(values, dim),
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values),
            pa.LargeListArray.from_arrays(offsets, values),
        ]
        for column in kinds:
            found = to_matrix(column[start:])
            assert found.dtype == np.float32
            assert len(found) == len(expected)
            assert np.array_equal(found.ravel(), expected.ravel(), equal_nan=True)
            chunks = to_matrix(pa.chunked_array([column[:start], column[start:]], column.type))
            assert np.array_equal(chunks.ravel(), matrix.astype(np.float32).ravel(), equal_nan=True)


def test_encoded_vectors_integers_and_nulls_among_numbers_become_a_matrix() -> None:
    assert to_matrix(encode(np.ones((2, 3), np.float32))).tolist() == [[1, 1, 1]] * 2
    assert to_matrix(pa.array([[1, 0], [0, 1]])).tolist() == [[1, 0], [0, 1]]
    assert np.isnan(to_matrix(pa.array([[1.0, None]]))).tolist() == [[False, True]]
    assert to_matrix(pa.array([[1e300]])).tolist() == [[np.inf]]
    assert to_matrix(pa.array([], pa.list_(pa.float32()))).shape == (0, 0)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0], None]), "the vector in row 1 is null"),
        (pa.array([[1.0, 2.0], [1.0, 2.0], [3.0]]), "the vector in row 2 has 1 numbers, the one in row 0 has 2"),
        (pa.chunked_array([[[1.0]], [[1.0], []]]), "the vector in row 2 has 0 numbers, the one in row 0 has 1"),
        (pa.array(["1 2"]), "this column is string"),
        (pa.array([["1"]]), "this column is list<item: string>"),
        (pa.array([b"abc"], pa.binary(3)), r"an even width; this column is fixed_size_binary\[3\]"),
        (pa.array([b"abcd", None], pa.binary(4)), "the vector in row 1 is null"),
    ],
    ids=["null", "short", "empty", "string", "strings", "odd", "null bytes"],
)
def test_what_is_no_matrix_is_refused_by_row(column: Any, message: str) -> None:
    with pytest.raises(VectorError, match=message):
        to_matrix(column)


def test_lengths_count_numbers_and_mark_nulls() -> None:
    assert vector_lengths(pa.array([[1.0], None, [], [1.0, 2.0]])).tolist() == [1, -1, 0, 2]
    assert vector_lengths(pa.array([b"abcd", None], pa.binary(4))).tolist() == [2, -1]
    assert vector_lengths(pa.array([[1, 2], None], pa.list_(pa.int8(), 2))).tolist() == [2, -1]


def test_unit_vectors_point_the_same_way_and_rows_without_direction_are_marked() -> None:
    matrix = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [1e-30, 0], [3e38, 0]], np.float32)
    unit, undirected = normalise(matrix)
    assert np.allclose(unit[0], [0.6, 0.8])
    assert undirected.tolist() == [False, True, True, True, False, False]
    assert unit[[1, 2, 3]].tolist() == [[0, 0]] * 3
    assert unit[[4, 5]].tolist() == [[1, 0]] * 2


@given(
    matrix=hnp.arrays(np.float32, sizes, elements=st.floats(-9, 9, width=32)),
    row=st.integers(0, 39),
)
def test_a_unit_vector_does_not_depend_on_the_rows_beside_it(matrix: np.ndarray, row: int) -> None:
    row %= len(matrix)
    alone, _ = normalise(matrix[row : row + 1])
    unit, undirected = normalise(matrix)
    assert (unit[row].view(np.uint32) == alone[0].view(np.uint32)).all()
    lengths = np.linalg.norm(unit[~undirected].astype(np.float64), axis=1)
    assert np.allclose(lengths, 1, atol=1e-6)


def test_blocks_of_rows_do_not_show_in_large_matrices() -> None:
    matrix = np.random.default_rng(0).standard_normal((300, 513), dtype=np.float32)
    unit, _ = normalise(matrix)
    assert (unit == np.concatenate([normalise(matrix[i : i + 7])[0] for i in range(0, 300, 7)])).all()
    assert encode(matrix).equals(pa.concat_arrays([encode(matrix[:11]), encode(matrix[11:])]))


@pytest.mark.parametrize("shape", [(3,), (2, 0)])
def test_only_a_matrix_with_numbers_can_be_encoded(shape: tuple[int, ...]) -> None:
    with pytest.raises(VectorError, match="vectors come as a matrix"):
        encode(np.zeros(shape, np.float32))


def test_the_codec_needs_no_torch() -> None:
    code = "import sys, datapipe.storage.vectors, datapipe.storage.sort; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
