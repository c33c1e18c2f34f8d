"""What runs on an NVIDIA GPU: memory, streams, graphs, and the executor that uses them.

    api.py      every call of CUDA, through cuda-core, each failure a BackendError
    shared_lock.py  many threads inside, or one alone
    memory.py   streams, device memory that frees itself in their order, tensors in it
    device.py   one GPU: lanes (a stream and all that runs on it), failures, exclusive moments
    graph.py    a bundle's graph on a GPU: fixed buffers for each set of shapes
    executor.py the engine's three steps on a GPU, and the mask step after them
    foreign.py  other libraries' device arrays and streams

Nothing here is imported before a CUDA device is asked for or tried.
"""
