"""Operations: services, intake, fresh feedback, serving, monitoring, promotion."""
