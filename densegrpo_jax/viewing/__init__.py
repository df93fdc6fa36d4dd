"""Pages that show runs: what they read (`run_data`), the page as a folder (`report`), and live
(`server`). A run writes what they show by `started`, `groups` and `pictures`.
"""
