"""Whole pieces of work, each one public function: checked, done, written, certified."""
