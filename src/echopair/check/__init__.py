"""The conformance check: named cases that any echo service, or proxy in front of one, passes or fails."""
