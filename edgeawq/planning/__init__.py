"""What a model would take and give on a device, from its configuration alone; no weight is read."""
