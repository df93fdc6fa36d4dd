"""What the search methods buy with equal budgets: cases, records, and the page."""
