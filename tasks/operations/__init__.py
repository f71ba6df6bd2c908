"""What runs day and night: services, intake, fresh feedback, serving, monitoring, promotion."""
