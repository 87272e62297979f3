"""What a run costs: FLOPs and bytes from its configuration, exchanges from its program, and what chips reach."""
