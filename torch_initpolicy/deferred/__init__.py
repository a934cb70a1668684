"""`skip_init`: what a constructor would have drawn, written down instead of drawn."""
