import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.training.layout import Layout

parameters = st.dictionaries(
    st.text(min_size=1, max_size=20), st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=8
).map(lambda found: tuple((name, shape, "float32") for name, shape in sorted(found.items())))  # fmt: skip


@given(parameters)
def test_a_layout_comes_back_from_its_json_with_the_same_fingerprint(given_parameters):
    layout = Layout(given_parameters)
    again = Layout.from_json(layout.to_json())
    assert again == layout
    assert again.sha256 == layout.sha256


@given(parameters)
def test_the_slices_cover_the_flat_array_once_and_in_order(given_parameters):
    layout = Layout(given_parameters)
    touched = np.zeros(layout.size, dtype=int)
    for name, part in layout.slices().items():
        shape = next(shape for known, shape, _ in given_parameters if known == name)
        touched[part] += 1
        assert touched[part].size == int(np.prod(shape))
    assert (touched == 1).all()


def test_another_order_shape_or_type_is_another_layout():
    base = Layout((("a", (2, 3), "float32"), ("b", (4,), "float32")))
    assert base.sha256 != Layout((("a", (3, 2), "float32"), ("b", (4,), "float32"))).sha256
    assert base.sha256 != Layout((("a", (2, 3), "float16"), ("b", (4,), "float32"))).sha256


@pytest.mark.parametrize("names", [("b", "a"), ("a", "a")])
def test_unsorted_or_repeated_names_are_refused(names):
    with pytest.raises(ValueError, match="sorted by name"):
        Layout(tuple((name, (1,), "float32") for name in names))


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=4), max_leaves=12)
)
def test_json_that_is_no_layout_is_a_value_error_and_nothing_else(data):
    try:
        Layout.from_json(json.dumps(data))
    except ValueError:
        return
