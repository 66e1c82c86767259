"""English-German sentences from a small grammar with real agreement."""
