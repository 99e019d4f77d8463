"""Elasticsearch's connector API, served over the SQL stores."""
