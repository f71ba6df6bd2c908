"""Fine-tuning methods behind one interface; `METHODS` is the literal extension point."""
