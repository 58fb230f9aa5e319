"""What the catalogue of a kept database says: one reader per question, each with its SQL beside it."""
