"""Our int8 and float16 graphs beside those of published tools, from the same float32 graphs.

__main__.py    python -m cris_bench.quantisers make, then measure
bundles.py     a float32 bundle's stages, and bundles with other stages in their place
makers.py      who makes graphs
elsewhere.py   tools that cannot be installed beside the engine, in a Python of their own
judge.py       what the graphs are worth: masks, logits, time
half.py        float16 graphs, with every result rounded
record.py      all of it as data, and as a table
"""
