"""A target whose file was rewritten on disk: recognised by the hashes that its wheel came with."""

import base64
import hashlib

from standins import COUNT, only


def record(sandbox, text):
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    sandbox.write(f"{sandbox.name}-1.0.dist-info/RECORD", f"{sandbox.name}/core.py,sha256={digest},{len(text)}\n")


def test_a_file_that_was_changed_on_disk_is_named_with_what_to_do(sandbox):
    sandbox.distribution(core=COUNT)
    record(sandbox, "def count():\n    return 0\n")
    sandbox.patch(guard="lambda original: 'is other code'")
    activation = sandbox.activate()
    sandbox.core()
    status = only(activation)
    assert status.state == "drifted"
    assert f"core.py is not the file that {sandbox.name} 1.0 installed" in status.reason
    assert "next step: install the distribution again" in status.reason


def test_a_file_as_it_was_installed_is_not_accused(sandbox):
    sandbox.distribution(core=COUNT)
    record(sandbox, COUNT)
    sandbox.patch(guard="lambda original: 'is other code'")
    activation = sandbox.activate()
    sandbox.core()
    assert "changed on disk" not in only(activation).reason
    assert "RECORD" not in only(activation).reason


def test_without_a_record_nobody_is_accused(sandbox):
    sandbox.distribution(core=COUNT)
    sandbox.patch(guard="lambda original: 'is other code'")
    activation = sandbox.activate()
    sandbox.core()
    assert "RECORD" not in only(activation).reason
