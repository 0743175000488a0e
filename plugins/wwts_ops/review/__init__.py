"""What people look at: the queue."""
