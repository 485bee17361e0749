"""Regions of a map with a known answer."""

from __future__ import annotations

import numpy as np
import torch

from finpercep.regions import Region, find_regions


def test_planted_rectangles_are_found_worst_first():
    degradation = torch.zeros(40, 60)
    degradation[5:15, 10:30] = 0.75
    degradation[7, 11] = 1.0
    degradation[25:30, 40:50] = 0.5
    degradation[35:38, 0:3] = 1.0  # 9 px: below the smallest area
    first, second = find_regions(degradation)
    assert first == Region((10, 5, 30, 15), 200, (199 * 0.75 + 1) / 200, 1.0)
    assert second == Region((40, 25, 50, 30), 50, 0.5, 0.5)


def test_corners_connect():
    degradation = np.zeros((20, 20), np.float32)
    degradation[2:6, 2:6] = degradation[6:10, 6:10] = 1
    (region,) = find_regions(degradation)
    assert (region.box, region.area) == ((2, 2, 10, 10), 32)


def test_a_clean_map_has_none_and_a_full_one_has_one():
    assert find_regions(np.zeros((8, 8))) == ()
    assert find_regions(np.full((8, 8), 0.5), threshold=0.5) == (Region((0, 0, 8, 8), 64, 0.5, 0.5),)
    assert find_regions(np.full((3, 3), 1.0), min_area=10) == ()
