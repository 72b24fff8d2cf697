"""Lightning callbacks: hooks only, no formulas."""
