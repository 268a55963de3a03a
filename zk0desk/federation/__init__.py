"""What happens between computers: the node, the coordinator, and the wire between them. Free of Qt."""
