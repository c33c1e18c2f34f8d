"""Ways to ask a bundle: in this process, and through servers on this machine."""
