from collections.abc import Callable

import foreign_peers
import pytest


@pytest.fixture(scope="session")
def make_peer(backbone_folder, tmp_path_factory) -> Callable[[str, str], foreign_peers.Peer]:
    """`make_peer(name, family)`: a checkpoint of another project over a tiny backbone."""
    return lambda name, family: foreign_peers.make_peer(
        name, family, backbone_folder(family), tmp_path_factory.mktemp("code")
    )
