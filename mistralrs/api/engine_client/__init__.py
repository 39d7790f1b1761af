"""An engine on an event loop: one in this process, or one in a process of its own.

Responsible for submitting requests, delivering their events, and noticing that an engine died or stands still. Never
deals with HTTP or with the shape of answers.
"""
