"""Fifty steps of training give the losses that are stored beside this file."""

from __future__ import annotations

from reference_curve import STEPS, TOLERANCE, curve, largest_difference


def test_the_losses_of_a_tiny_training_are_the_stored_ones() -> None:
    found = curve()
    assert largest_difference(found) < TOLERANCE
    # What the comparison is worth: half a percent at one step is noticed, and so is a run that is too short.
    assert largest_difference({**found, 9: found[9] * 1.005}) > TOLERANCE
    assert largest_difference({step: found[step] for step in range(1, STEPS)}) > TOLERANCE
