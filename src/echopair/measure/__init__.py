"""What was measured, and how it is reported: pure, without a socket or a clock."""
