"""The parity gate of an export, and the samples it is held on."""
