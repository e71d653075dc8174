"""What each device is and how fast it can be: one TOML per device, and the roofline arithmetic."""
