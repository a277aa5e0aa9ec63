"""What the library costs, as ratios to something that does the same."""
