"""The thread that owns the device: schedules jobs into batches and renders them."""
