"""Pages of the key and value cache: which request holds which, and which prompts were read before.

A page holds 16 positions. A page that is full is known by everything before it and in it, so a later request that
begins alike takes it over instead of reading again. Pages that no request holds stay known until their room is needed,
the longest unused first. Page 0 belongs to nobody: rows that fill up a step write there.
"""

import hashlib
from array import array
from collections import OrderedDict

from postmill.kernels.paged_attention import PAGE


class Pages:
    """Which of `count` pages are free, held (by how many), or known."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, 0, -1))
        self._holders: dict[int, int] = {}
        self._page_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self.count = count

    @property
    def num_available(self) -> int:
        """Pages that can be had: free ones, and known ones that nobody holds."""
        return len(self._free) + len(self._idle)

    def take(self) -> int:
        """A page for new positions. The caller asks `num_available` first."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._name_of.pop(page)]
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more holder."""
        if page in self._idle:
            del self._idle[page]
        self._holders[page] = self._holders.get(page, 0) + 1

    def release(self, pages: list[int]) -> None:
        """One holder less of each."""
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            del self._holders[page]
            if page in self._name_of:
                self._idle[page] = None
            else:
                self._free.append(page)

    def find(self, name: bytes) -> int | None:
        """The page that holds what `name` stands for."""
        return self._page_of.get(name)

    def know(self, page: int, name: bytes) -> None:
        """A page is full. If another one holds the same, that one stays known."""
        if name not in self._page_of and page not in self._name_of:
            self._page_of[name], self._name_of[page] = page, name


def page_name(before: bytes, ids: list[int]) -> bytes:
    """What stands for a full page: 16 tokens, and the name of all that comes before."""
    assert len(ids) == PAGE
    return hashlib.blake2b(before + array("q", ids).tobytes(), digest_size=16).digest()
