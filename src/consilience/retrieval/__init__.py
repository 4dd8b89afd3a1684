"""The retrieval side: fuse what several stores found, choose a small set that represents it."""
