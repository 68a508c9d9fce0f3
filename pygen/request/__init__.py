"""What a caller asked: settings merged by priority, and the checked prompt."""
