"""The two commands: what they accept, what they print, how they exit."""
