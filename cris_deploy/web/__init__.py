"""The page that finds masks in a browser: plain files, which `cris-export web` joins with a bundle."""
