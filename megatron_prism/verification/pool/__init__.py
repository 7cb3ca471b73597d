"""Worker processes that run graders and can be killed."""
