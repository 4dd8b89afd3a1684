"""What a bundle keeps of each expert beside the shared weights; one file per kind, found by its name."""
