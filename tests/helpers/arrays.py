"""Comparisons whose failures say how many elements differ, by how much, and where."""

import jax
import numpy as np


def assert_near(got, want, tolerance=1e-5, name=""):
    """No difference exceeds `tolerance` times the largest value of `want`."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    largest = np.abs(want).max()
    assert got.shape == want.shape and 0 < largest < np.inf, name
    bound = tolerance * largest
    np.testing.assert_allclose(got, want, rtol=0, atol=bound, equal_nan=False, err_msg=name)


def assert_same_trees(got, want):
    """The trees have the same structure, and their leaves the same numbers."""
    got, want = jax.device_get((got, want))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree_util.tree_map_with_path(
        lambda path, x, y: np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path)), got, want
    )
