"""Valkey and PostgreSQL as supervised children: started when no URL is configured, gone when the process is gone."""
