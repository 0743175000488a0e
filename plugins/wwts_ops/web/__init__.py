"""The pages inside Airflow: a FastAPI app over what ``review``, ``taxonomy_changes`` and the reports know."""
