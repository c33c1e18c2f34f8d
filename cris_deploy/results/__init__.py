"""What a caller holds: masks, scenes, an engine's account of itself."""
