"""scratch.py: what tests in Python that write share."""
import os
import tempfile
import unittest
from unittest import mock


class Scratch(unittest.TestCase):
    """A folder of the test's own, and a cache in it."""

    def setUp(self):
        room = tempfile.TemporaryDirectory()
        self.addCleanup(room.cleanup)
        self.folder = room.name
        patch = mock.patch.dict(os.environ, ETREF_CACHE=os.path.join(self.folder, "cache"))
        patch.start()
        self.addCleanup(patch.stop)

    def path(self, name):
        return os.path.join(self.folder, name)
