"""Integers of a few bits, packed: what comes back is what went in, in as few bytes as it takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lcs.export import packing
from lightning_lcs.export.packing import pack_bits, packed_size, unpack_bits
from lightning_lcs.functional.quantization import integer_range


@st.composite
def integers(draw):
    bits = draw(st.integers(2, 8))
    return bits, np.array(draw(st.lists(st.integers(*integer_range(bits)), max_size=70)), np.int8)


@given(integers())
def test_any_length_comes_back(drawn):
    bits, values = drawn
    packed = pack_bits(values, bits)
    assert packed.size == -(-values.size * bits // 8)
    assert np.array_equal(unpack_bits(packed, bits, values.size), values)


@pytest.mark.parametrize("bits", range(2, 9))
def test_parts_join_without_a_gap(bits, monkeypatch):
    values = np.random.default_rng(0).integers(*integer_range(bits), 1003, np.int8, endpoint=True)
    whole = pack_bits(values, bits)
    monkeypatch.setattr(packing, "_PART", 16)
    assert np.array_equal(pack_bits(values, bits), whole)
    assert np.array_equal(unpack_bits(whole, bits, values.size), values)


def test_the_layout_against_bits_written_by_hand():
    # 1 = 001, -1 = 111, -4 = 100, the lowest bit first: 100 111 001, filled up.
    assert [f"{byte:08b}"[::-1] for byte in pack_bits(np.array([1, -1, -4], np.int8), 3)] == ["10011100", "10000000"]


def test_any_shape():
    values = np.arange(-8, 8, dtype=np.int8).reshape(2, 2, 4)
    assert np.array_equal(unpack_bits(pack_bits(values, 4), 4, 16), values.reshape(-1))


@pytest.mark.parametrize("value", [-5, 4])
def test_an_integer_that_does_not_fit(value):
    with pytest.raises(ValueError, match="3 bits hold -4 to 3"):
        pack_bits(np.array([0, value], np.int8), 3)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=r"2\.\.8"):
        packed_size(4, bits)


def test_the_wrong_number_of_bytes():
    with pytest.raises(ValueError, match="4 bytes, and there are 3"):
        unpack_bits(np.zeros(3, np.uint8), 3, 10)
