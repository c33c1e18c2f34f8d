"""Generated referring scenes, and pictures that cost what photographs cost."""
