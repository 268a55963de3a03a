"""zk0desk: train a shared SmolVLA policy together, without giving recordings away."""

__version__ = "0.1.0"
