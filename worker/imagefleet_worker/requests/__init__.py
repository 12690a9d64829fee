"""What a request asks for, checked and resolved before the device is touched."""
