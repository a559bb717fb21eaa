"""Codes and numbers as sentences for people, in Korean and English. For rooms that answer them; knows no database."""
