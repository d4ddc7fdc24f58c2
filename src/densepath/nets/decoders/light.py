"""A convolutional decoder from maps of several resolutions to pixels: SparK's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from densepath.core.errors import UserError, counted


class LightDecoder(nn.Module):
    """Blocks that double the resolution and halve the channels, with the encoder's maps added to their inputs.

    A block is a transposed convolution 4 x 4, a convolution 3 x 3, batch norm, ReLU6, a convolution 3 x 3 to half the
    channels, and batch norm. A convolution 1 x 1 gives the pixels.

    Args:
        dim: channels of the first block.
        doublings: number of blocks.
        colors: channels of a pixel.

    Attributes:
        channels: input channels of each block, and output channels of the last.

    Raises:
        UserError: ``dim`` cannot be halved that many times.

    Source: SparK (ICLR 2023), section 3.3; the layers as released.
    """

    def __init__(self, dim: int, doublings: int, colors: int = 3) -> None:
        super().__init__()
        if dim < 1 or dim % 2**doublings:
            raise UserError(
                f"a decoder of {counted(dim, 'channel')} cannot halve them {counted(doublings, 'time')}; give a "
                f"multiple of {2**doublings}, e.g. --method.decoder_dim 768"
            )
        self.channels = tuple(dim // 2**number for number in range(doublings + 1))
        self.blocks = nn.ModuleList(
            _block(before, after) for before, after in zip(self.channels, self.channels[1:], strict=False)
        )
        self.predict = nn.Conv2d(self.channels[-1], colors, 1)
        self.apply(_initialize)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pixels (B, colors, S, S) of maps, the smallest first: the i-th is (B, channels[i], s * 2**i, s * 2**i)."""
        x = maps[0]
        for number, block in enumerate(self.blocks):
            if 0 < number < len(maps):
                x = x + maps[number]
            x = block(x)
        return self.predict(x)


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(before, before, 4, stride=2, padding=1),
        nn.Conv2d(before, before, 3, padding=1, bias=False),
        nn.BatchNorm2d(before),
        nn.ReLU6(inplace=True),
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
    )


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
