"""What runs on an NVIDIA GPU: memory, streams, graphs, and the road of a picture through them.

    api.py      every call of CUDA's runtime, through cuda-python, each status checked
    gate.py     many threads inside, or one alone
    memory.py   device memory that frees itself in stream order, tensors in it, streams, events
    device.py   one GPU: lanes (a stream and all that runs on it), failures, exclusive moments
    graph.py    a bundle's graph on a GPU: fixed buffers for each set of shapes
    road.py     the engine's three steps on a GPU, and the mask step after them
    foreign.py  other libraries' device arrays and streams

Nothing here is imported before a CUDA device is asked for or tried.
"""
