"""Prefect flows around the stages of `dvc.yaml`, the project's database, and the command line."""
