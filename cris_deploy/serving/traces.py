"""OpenTelemetry traces of requests: the extra `traces`, and `cris-serve --traces`.

Where they go is said by OpenTelemetry's own variables, OTEL_EXPORTER_OTLP_ENDPOINT and others. A
request's span continues the client's (`traceparent`) and has two of ours inside: `decode` and
`segment`, the latter with the time it waited for a batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fastapi import FastAPI

from cris_deploy.errors import InputError

VARIABLE: Final = "CRIS_SERVE_TRACES"
"""Set for worker processes that are to trace."""
_INSTALL: Final = "traces need OpenTelemetry: pip install 'cris-deploy[traces]'"


def require() -> None:
    """Raise InputError unless what traces need is installed."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.instrumentation.fastapi
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise InputError(f"{_INSTALL} ({error})") from None


def instrument(app: FastAPI) -> None:
    """Trace an application's requests and send the spans in the background."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "cris-serve"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=provider, excluded_urls="live,ready,metrics"
    )


@contextmanager
def span(name: str, **attributes: int | str) -> Iterator[None]:
    """A part of the running request; nothing where OpenTelemetry is not installed."""
    try:
        from opentelemetry import trace
    except ImportError:
        yield
        return
    with trace.get_tracer("cris_deploy.serving").start_as_current_span(name, attributes=attributes):
        yield
