"""What the fleet does: one package per area, each with a plan, an executor and thin Celery tasks."""
