"""Shared weights with a residual per expert: what merging into one model would lose is kept."""
