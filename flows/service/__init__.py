"""A release in service: what has arrived is scored once, alerts open and close in the database, and people are told."""
