"""The lists of all users under their older name: see sasrec.export.all_users."""

from sasrec.export.all_users import recommend_all

__all__ = ["recommend_all"]
