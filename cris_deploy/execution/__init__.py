"""From letterboxed images and tokens to masks: executors, backends, batches, caches."""
