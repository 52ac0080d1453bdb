"""The paper's experiment over recipes: what each answers and takes on this machine, and a report of it. No torch here."""
