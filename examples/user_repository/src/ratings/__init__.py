"""Who likes which film."""
