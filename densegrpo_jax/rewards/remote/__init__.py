"""Rewards computed elsewhere: protocol, client, service, judge."""
