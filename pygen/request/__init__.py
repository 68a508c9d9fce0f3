"""The request of a caller: settings merged by priority, and the checked prompt."""
