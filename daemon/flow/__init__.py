"""Loops that run for weeks: stream, backfill, embed, pulse."""
