"""The worker over HTTP: the server (`create_app`, `datapipe serve`), routes of other packages, and the client.

    Gate (key, limits, body, disconnect) -> Route (decode, validate) -> handler -> worker.arun -> JSON or Arrow

Only this package knows FastAPI, uvicorn and httpx. `client.HttpWorker` needs httpx alone, `route.Route` nothing but
pydantic.
"""
