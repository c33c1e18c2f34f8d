"""Float16 and int8: which types a graph computes in, decided on measures."""
