"""Outside systems, one module each. No decision about sync is taken here."""
