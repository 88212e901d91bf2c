"""Options of the command ``sfd serve``. They are no keys of ``params.yaml``, because no result depends on them."""

from dataclasses import dataclass

from sfd.errors import UserError


@dataclass(frozen=True)
class ServerOptions:
    """Options of ``sfd serve``.

    Attributes:
        model: name of the registered model.
        alias: which version of it: an alias, which is followed when it moves, or a number.
        batch_size: images per sampler call.
        max_images: images per request.
        max_queue: images that may wait, over all requests.
        timeout_seconds: a request that is not answered within this time is refused.
        poll_seconds: time between two look-ups of the alias.
    """

    model: str
    alias: str = "champion"
    batch_size: int = 8
    max_images: int = 16
    max_queue: int = 128
    timeout_seconds: float = 60.0
    poll_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Raises :class:`UserError` if a request that is allowed could never be admitted."""
        if self.max_images > self.max_queue:
            raise UserError(
                f"--max-images {self.max_images} is more than --max-queue {self.max_queue}, so the largest requests could never be "
                "admitted; raise --max-queue, or lower --max-images"
            )
