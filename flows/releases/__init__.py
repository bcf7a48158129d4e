"""Releases at work: the way into service and back, what each is, how two differ, what is kept, what rebuilds."""
