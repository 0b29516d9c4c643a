"""`ImageFormat`: the size and the number of channels to which images are brought, one by one or as an array."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

__all__ = ["AS_STORED", "ImageFormat"]

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601, as in Pillow


@dataclass(frozen=True)
class ImageFormat:
    """What images are made of before they are padded.

    Attributes:
        resize: the side of square images: the largest square at the center of each image is resized by bicubic
            interpolation, which averages where pixels are merged. None to keep the size.
        channels: 1 for gray images (the luminance of colors), 3 for colors (equal channels of gray images); None to
            keep the channels.

    Raises:
        ValueError: for a side below 1, and another number of channels.
    """

    resize: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"expected resize to be at least one pixel, got {self.resize}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"expected channels to be 1 (gray) or 3 (red, green, blue), got {self.channels}")

    @property
    def given(self) -> str:
        """The options that were given, for errors; empty if there are none."""
        return ", ".join(f"{name}={value}" for name, value in vars(self).items() if value is not None)

    def __call__(self, x: np.ndarray, rows: np.ndarray | None = None, *, name: str = "images") -> np.ndarray:
        """Images (n, channels, height, width) in this format, of the same type; integers are rounded.

        Args:
            x: the images.
            rows: their numbers, which do not matter.
            name: the source, for errors.

        Raises:
            ValueError: for the rows of a table, and images of other than 1 or 3 channels if `channels` is given.
        """
        if self.given and x.ndim != 4:
            raise ValueError(f"{self.given}: an option of images, and {name} has rows of shape {x.shape[1:]}")
        if self.channels not in (None, x.shape[1]):
            x = _with_channels(x, self.channels, name)
        if self.resize is None or x.shape[2:] == (self.resize, self.resize):
            return x
        flat = x.reshape(-1, *x.shape[2:])
        squares = np.stack([_square(plane, self.resize) for plane in flat]).astype(x.dtype)
        return squares.reshape(*x.shape[:2], self.resize, self.resize)


AS_STORED = ImageFormat()


def _square(plane: np.ndarray, side: int) -> np.ndarray:
    """The resized center of one channel (height, width), within its range of values."""
    image = Image.fromarray(plane.astype(np.float32))
    fitted = np.asarray(ImageOps.fit(image, (side, side), method=Image.Resampling.BICUBIC))
    fitted = fitted.clip(plane.min(), plane.max())  # bicubic interpolation overshoots at edges
    return np.rint(fitted) if plane.dtype.kind in "iub" else fitted


def _with_channels(x: np.ndarray, channels: int | None, name: str) -> np.ndarray:
    """Gray images of colors, or colors of gray images."""
    if channels == 3 and x.shape[1] == 1:
        return np.repeat(x, 3, axis=1)
    if channels == 1 and x.shape[1] == 3:
        gray = np.einsum("nchw,c->nhw", x.astype(np.float64), LUMINANCE)[:, None]
        return (np.rint(gray) if x.dtype.kind in "iub" else gray).astype(x.dtype)
    raise ValueError(f"channels={channels}: expected images of 1 or 3 channels, got {x.shape[1]} in {name}")
