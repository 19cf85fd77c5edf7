"""The evaluation of ten views (section 4.1) by NumPy."""

import numpy as np


def ten_views(images, statistics, crop):
    """The corners and the centre of images [n, size, size, channels] less the mean, and their reflections."""
    mean, last = np.asarray(statistics["mean_image"]), images.shape[1] - crop
    views = []
    for top, left in ((0, 0), (0, last), (last, 0), (last, last), (last // 2, last // 2)):
        view = (images.astype(np.float32) - mean)[:, top : top + crop, left : left + crop]
        views += [view, view[:, :, ::-1]]
    return views


def mean_of_softmax(logits):
    """The mean of the softmax of several logits [n, classes], in float64."""
    total = []
    for each in logits:
        each = np.asarray(each, np.float64)
        exp = np.exp(each - each.max(axis=1, keepdims=True))
        total.append(exp / exp.sum(axis=1, keepdims=True))
    return np.mean(total, axis=0)
