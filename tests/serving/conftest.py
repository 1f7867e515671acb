"""Fixtures of this folder's tests."""

from helpers.page import page as page
from helpers.page import page_address as page_address
from helpers.server import ai as ai
from helpers.server import client as client
from helpers.server import shared as shared
from helpers.worker import worker as worker
