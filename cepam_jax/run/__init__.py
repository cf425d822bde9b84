"""From settings to a finished work directory. Start with `training`."""
