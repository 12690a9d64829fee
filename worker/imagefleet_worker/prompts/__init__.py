"""A1111's prompt syntax: parsing, schedules, windows and encoding."""
