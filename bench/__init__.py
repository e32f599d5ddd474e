"""Measurements as ratios within one run: `./dev bench`."""
