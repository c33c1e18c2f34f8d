"""Generated scenes of named things: pictures of things on photographs, and what is said of them."""
