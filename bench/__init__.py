"""What measures sockgw against others, side by side on one machine; see docs/performance.rst."""
