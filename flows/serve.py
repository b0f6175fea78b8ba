"""Keep the flows' schedules on one machine, in one process: `python -m flows.serve`. Stopping it pauses them."""

from __future__ import annotations

from prefect import serve

from flows.curate import curate_flow


def main() -> None:
    """Serve the curate flow every night at two, UTC, with the parameters of `prefect.yaml`."""
    serve(
        curate_flow.to_deployment(  # type: ignore[arg-type]
            name="nightly",
            cron="0 2 * * *",
            concurrency_limit=1,
            parameters={
                "source": "data/banking77.parquet",
                "out": "runs/nightly",
                "options": {"text_column": "text", "label_column": "label_name"},
            },
        )
    )


if __name__ == "__main__":
    main()
