"""What a checkpoint or a bundle is worth: metrics, reports, sheets."""
