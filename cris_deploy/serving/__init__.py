"""`cris-serve`: a bundle behind HTTP, for one machine.

    app.py      the routes, and what a worker process is from start to end
    service.py  an engine with its batcher: ready, replaced, drained
    requests.py a request's body becomes an image and expressions
    answers.py  masks become JSON, PNG or ZIP; errors become a status and one sentence
    self_test.py  samples of the bundle, before a server is ready
    v2.py       the Open Inference Protocol, with its binary tensors
    guard.py    what a request may cost before it is understood: token, length, time
    images.py   images that were sent before, by the hash of their bytes
    memory.py   large buffers go back to the system
    metrics.py  Prometheus
    traces.py   OpenTelemetry, if it is asked for
    logs.py     one JSON object a line
    haproxy.py  the configuration of a proxy before several workers
    triton.py   the model inside of another server, Triton
    ray.py      the same application for Ray Serve; ray_options.py what it is asked to do

Needs the extra `serve` (triton.py does not); only `cris_deploy/cli/serve.py` and `cris-bench serve`
lead here, and `cris-export triton` to triton.py.
"""
