"""A bundle in a browser: a folder that any host of static files serves."""
