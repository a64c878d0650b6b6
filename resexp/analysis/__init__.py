"""Reading finished runs: tables, figures, the verdict. From files alone; never imports torch."""
