"""What several test files need. Test modules import from here, never from each other."""

import pytest

pytest.register_assert_rewrite("support.models", "support.runs", "support.servers")
