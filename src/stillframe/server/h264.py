"""The size of H.264 video, read from its sequence parameter sets before anything is decoded.

Source: ITU-T H.264, 7.3.1 (NAL units), 7.3.2.1.1 (sequence parameter sets), 9.1 (Exp-Golomb codes).
"""

from __future__ import annotations

from stillframe.server.protocol import ProtocolError

__all__ = ["h264_size"]

_SEQUENCE = 7
# profiles whose sets say more of the samples: High and those above it
_HIGH = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
_BYTES = 256
"""Of a parameter set; scaling lists, the longest that there is, take fewer."""
_DAMAGED = "a video frame is damaged: it has no size"


def h264_size(data: bytes) -> tuple[int, int] | None:
    """Width and height, in whole macroblocks, that an access unit begins; None if it has none.

    Args:
        data: NAL units with start codes before them.

    Raises:
        ProtocolError: what says the size is damaged, or two of them do not say the same.
    """
    units = [unit for unit in data.split(b"\0\0\1")[1:] if unit]
    sets = {unit[1 : _BYTES + 1] for unit in units if unit[0] & 0x1F == _SEQUENCE}
    if not units:
        raise ProtocolError("a video frame ends within its header")
    try:
        sizes = {_Bits(each).size() for each in sets}
    except IndexError as error:
        raise ProtocolError(_DAMAGED) from error
    if len(sizes) > 1:
        raise ProtocolError(_DAMAGED)
    return next(iter(sizes), None)


class _Bits:
    """A parameter set, bit by bit; IndexError at its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data.replace(b"\0\0\3", b"\0\0")  # 7.4.1: bytes against false start codes
        self._at = 0

    def _bit(self) -> int:
        byte, shift = divmod(self._at, 8)
        self._at += 1
        return self._data[byte] >> (7 - shift) & 1

    def _number(self, bits: int) -> int:
        value = 0
        for _ in range(bits):
            value = 2 * value + self._bit()
        return value

    def _coded(self) -> int:
        """An Exp-Golomb code, unsigned."""
        zeros = 0
        while not self._bit():
            zeros += 1
            if zeros > 31:
                raise IndexError
        return (1 << zeros) - 1 + self._number(zeros)

    def size(self) -> tuple[int, int]:
        """Width and height before any cropping."""
        profile = self._number(8)
        self._number(16)  # constraints, level
        self._coded()  # its number
        if profile in _HIGH:
            self._samples()
        self._coded()  # bits of a frame's number
        self._order()
        self._coded()  # frames that are referred to
        self._bit()
        width, height = self._coded() + 1, self._coded() + 1
        height *= 2 - self._bit()  # fields are half as high
        return 16 * width, 16 * height

    def _samples(self) -> None:
        if self._coded() == 3:  # chroma as fine as luma
            self._bit()
            lists = 12
        else:
            lists = 8
        self._coded()
        self._coded()
        self._bit()
        if self._bit():
            for number in range(lists):
                if self._bit():
                    self._scaling(16 if number < 6 else 64)

    def _scaling(self, length: int) -> None:
        last = scale = 8
        for _ in range(length):
            if scale:
                code = self._coded()
                scale = (last + (-1) ** (code + 1) * -(-code // 2)) % 256
            last = scale or last

    def _order(self) -> None:
        """How the order of pictures is told."""
        kind = self._coded()
        if kind == 0:
            self._coded()
        elif kind == 1:
            self._bit()
            self._coded()
            self._coded()
            for _ in range(self._coded()):
                self._coded()
