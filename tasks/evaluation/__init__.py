"""Win rates, calibration, safety, the gate, and the comparison of variants."""
