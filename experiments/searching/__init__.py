"""The search methods compared at equal budgets: cases, records, and the page."""
