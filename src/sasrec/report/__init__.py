"""Results for people: text, tables, charts, pages."""
