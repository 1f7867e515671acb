"""Measuring: the work that the model needs, how fast this machine does it, and whether the results are right.

The commands `bench` and `doctor` are built on it.
"""
