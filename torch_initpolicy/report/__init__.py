"""Shows plans, receipts and findings; computes nothing."""
