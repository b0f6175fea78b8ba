"""Keep the flows' schedules on one machine, in one process: `python -m flows.serve`. Stopping it pauses them."""

from __future__ import annotations

from prefect import serve

from flows.curate import curate_flow
from flows.distill import distill_flow
from flows.refresh_pruner import refresh_pruner


def main() -> None:
    """Serve curation nightly at two, its soft labels at four, the pruner's refresh on Sundays at three, all UTC."""
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
        ),
        distill_flow.to_deployment(  # type: ignore[arg-type]
            name="labels", cron="0 4 * * *", concurrency_limit=1, parameters={"out": "runs/nightly"}
        ),
        refresh_pruner.to_deployment(  # type: ignore[arg-type]
            name="weekly",
            cron="0 3 * * 0",
            concurrency_limit=1,
            parameters={"out": "runs/pruner", "sets": ["data/squad20_dev.parquet"]},
        ),
    )


if __name__ == "__main__":
    main()
