"""A small residual network whose samples do not influence each other.

ResNet-8 is the residual network for small images with one block in each of its three
stages (6n + 2 layers with n = 1). Two things differ from the publication: group
normalization stands where batch normalization stood, whose statistics would tie the
samples of a batch and need averaging of their own, and images may have any size.

References:
    He, Zhang, Ren and Sun (2016), Deep residual learning for image recognition,
    section 4.2 (shortcuts without parameters, option A).
    Wu and He (2018), Group normalization, equation 7.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dfl_unlearn import _validate
from dfl_unlearn._limits import PARAMETERS, check_cap
from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.smooth import rectifier
from dfl_unlearn.models.zoo import AsImage, head, image_shape, models


@models.register("resnet8")
def resnet8(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 16,
    groups: int = 8,
    l2: float = 0.0,
    smooth: bool = False,
) -> FlatModel:
    """ResNet-8 with group normalization, for images.

    A convolution 3 x 3, three residual blocks of two convolutions 3 x 3 with 1, 2 and
    4 times ``width`` channels, the last two of which halve the image; the mean over
    pixels and one linear layer.

    Args:
        input_shape: (H, W), (C, H, W), or (H * H,) for a flattened square; H, W >= 4.
        num_classes: 0 for a regression, else >= 2.
        width: Channels of the first stage, a multiple of ``groups``.
        groups: Groups of channels that are normalized together, in every layer.
        l2: lambda >= 0; it covers the normalization's scales too.
        smooth: Whether ``SmeLU`` stands where ReLU stood.

    Returns:
        The model; P = 75,290 for (3, 32, 32), 10 classes and width 16.

    Raises:
        InvalidArgumentError: If ``width`` is not a multiple of ``groups``.
    """
    _validate.integer(width=width, groups=groups, at_least=1)
    if width % groups:
        raise InvalidArgumentError(
            f"width: must be a multiple of groups={groups}, got {width}; widen the "
            "network or give fewer groups"
        )
    image = image_shape(input_shape)
    outputs, loss = head(num_classes)
    # Convolutions of 9 weights: in, 2 w^2, 2 w^2 + 4 w^2, 8 w^2 + 16 w^2.
    size = 9 * width * (image[0] + 32 * width) + 4 * width * outputs
    check_cap(PARAMETERS, size, "model")
    module = nn.Sequential(
        AsImage(image),
        nn.Conv2d(image[0], width, 3, padding=1, bias=False),
        nn.GroupNorm(groups, width),
        rectifier(smooth),
        _Block(width, width, 1, groups, smooth),
        _Block(width, 2 * width, 2, groups, smooth),
        _Block(2 * width, 4 * width, 2, groups, smooth),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, outputs),
    )
    return FlatModel(module, loss, l2=l2)


class _Block(nn.Module):
    """``relu(x + norm(conv(relu(norm(conv(x))))))``; more channels begin as zeros."""

    def __init__(
        self, inner: int, outer: int, stride: int, groups: int, smooth: bool
    ) -> None:
        super().__init__()
        self.stride = stride
        self.added = outer - inner
        self.act = rectifier(smooth)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, outer)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        shortcut = x[..., :: self.stride, :: self.stride]
        rectified: Tensor = self.act(
            inner + F.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        )
        return rectified
