"""Pictures in, masks out: decoding, letterbox, the mask step on CPUs and GPUs."""
