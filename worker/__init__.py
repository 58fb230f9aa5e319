"""What you start: the Celery app, the command line, the reaper, the demo."""
