"""`cris-segment --ray`: folders, Parquet files and buckets through many engines, on Ray Data.

    places.py    a path or a URL, as pyarrow.fs reads it
    sources.py   what is there to do: pictures and expressions, in portions
    reading.py   a portion is read
    placement.py how much of a machine a worker takes
    parts.py     what was done: Parquet files that appear whole, and what they say is done
    job.py       the portions through the workers; the only file that imports Ray

A portion is the unit of everything: a worker takes one and writes one file, named after what is
in it. A portion that is done twice is written twice to the same file, and one whose file is there
is not done again. Needs the extra `ray`, which brings pyarrow; only `cris_deploy/cli/` leads here.
"""
