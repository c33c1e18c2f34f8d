"""From images and expressions to masks: the steps, executors, backends, streams, caches."""
