"""The plan, one stage, a run of many, and what can be said of it afterwards"""
from .run import reproduce
from .stages import Stage, plan

__all__ = ["Stage", "plan", "reproduce"]
