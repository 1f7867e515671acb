"""Fixtures of this folder's tests."""

from helpers.server import ai as ai
from helpers.server import client as client
from helpers.server import shared as shared
from helpers.worker import worker as worker
