"""Prefect flows: schedules, retries and artifacts around one library call a task."""
