"""The lineage graph of a version, and its renderings: HTML, OpenLineage, CycloneDX."""
