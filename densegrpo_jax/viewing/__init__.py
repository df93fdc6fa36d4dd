"""Pages that show runs: what they read (`run_data`), the page as a folder (`report`), and live
(`server`).
"""
