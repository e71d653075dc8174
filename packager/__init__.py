"""From a quantized checkpoint and a device profile to a bundle that the device maps and runs."""
