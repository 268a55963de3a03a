"""What the system's desktop has of zk0desk: the menu entry, the start with the computer, what it hands over, and taking all of it away."""
