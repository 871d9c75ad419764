"""Mistakes that a worker found, raised here as themselves."""

import pytest
import ray.exceptions

from maskrcnn_core.errors import ImageError, UserError
from pipelines.cluster import unwrapped_errors


@pytest.mark.parametrize("mistake", [UserError("no such folder"), ImageError("missing", "no such object")])
def test_a_users_mistake_comes_out_of_rays_report(mistake: UserError) -> None:
    with pytest.raises(type(mistake), match=str(mistake)) as found, unwrapped_errors():
        raise ray.exceptions.RayError from mistake
    assert vars(found.value) == vars(mistake)
