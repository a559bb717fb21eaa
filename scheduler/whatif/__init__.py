"""What if: a saved or live state played twice, as it is and under other numbers."""
