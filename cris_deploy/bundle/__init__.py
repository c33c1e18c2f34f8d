"""The bundle on disk: manifest, graphs, weights, plans; nothing is used unverified."""
