"""Guests: processes in which model output is run, and what they give up."""
