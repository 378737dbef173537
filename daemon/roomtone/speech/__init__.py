"""From the spool to words: the v3 protocol, sessions, seams and coverage."""
