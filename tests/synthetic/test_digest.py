"""What stands for a version in the record of a generated folder."""

import hashlib
import json
from dataclasses import replace

from served import untrained

from sfd.registry.load import RegisteredModel
from sfd.synthetic.generate import _digest


def digest_of_before(registered: RegisteredModel) -> str:
    """As it was when settings had neither a precision nor a schedule that is yet to be learnt."""
    settings = json.loads(registered.sample.model_dump_json())
    del settings["precision"], settings["schedule"]["learnt"]
    digest = hashlib.sha256(json.dumps(settings, separators=(",", ":")).encode())
    for network in (registered.images.network, registered.images.decoder):
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_a_folder_that_an_older_version_began_names_the_same_weights() -> None:
    registered = untrained(sample={"schedule": {"kind": "offset", "tau": 0.3}})
    assert _digest(registered) == digest_of_before(registered)
    other = replace(registered, sample=registered.sample.model_copy(update={"num_steps": 7}))
    assert _digest(other) != _digest(registered)
