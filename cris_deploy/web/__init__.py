"""The page that finds masks in a browser; `cris-export web` joins it with a bundle."""
