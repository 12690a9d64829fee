"""Requests validated and resolved into jobs, before the device is used."""
