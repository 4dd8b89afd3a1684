"""Shared machinery: jobs, executor, counter-based randomness, hashing, progress."""
