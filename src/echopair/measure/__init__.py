"""What was measured, and how it is told: pure, without a socket or a clock."""
