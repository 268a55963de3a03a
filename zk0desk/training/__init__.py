"""What happens on this computer's data: recordings, hardware, the policy and its local round. Free of Qt."""
