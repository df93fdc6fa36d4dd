"""The guard against reward hacking: unseen scores measured beside the trained one.

Reading order: falls (the test), check (what will be measured), guard (measuring and acting),
history (what it keeps of a run), verdict (its page).
"""
