"""The codecs' inner loops in plain Python: what the compiled ones must equal byte for byte."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

MASK = (1 << 64) - 1


def bpez_merged(data, cycles):
    """Headers (high, low, value), oldest first, and what is left: counted anew in every cycle."""
    headers = []
    for _ in range(cycles):
        counts = Counter(pairwise(data))
        unused = [value for value in range(256) if value not in data]
        most = max(counts.values(), default=0)
        if most < 3 or not unused:
            break
        high, low = min(pair for pair, count in counts.items() if count == most)
        headers.append((high, low, unused[0]))
        data = data.replace(bytes([high, low]), bytes([unused[0]]))
    return headers, data


def bpez_expanded(headers, data):
    for high, low, value in reversed(headers):
        data = data.replace(bytes([value]), bytes([high, low]))
    return data


def more(number):
    found = []
    while number >= 128:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def put(data, start, at, length, distance):
    run, far = at - start, distance > 65536
    out = bytes([min(run, 7) << 5 | far << 4 | (min(length - 4, 15) if length else 0)])
    out += more(run - 7) if run >= 7 else b""
    out += data[start:at]
    if length:
        out += (distance - 1).to_bytes(3, "little")[: 2 + far]
        out += more(length - 19) if length >= 19 else b""
    return out


def hashed(data, at, count, bits):
    word = int.from_bytes(data[at : at + count].ljust(count, b"\0"), "little")
    return ((word << 8 * (8 - count)) * 0x9E3779B185EBCA87 & MASK) >> (64 - bits)


def common(data, older, newer):
    length = 0
    while newer + length < len(data) and data[older + length] == data[newer + length]:
        length += 1
    return length


def ulz_fast(data, bits, window):
    last, out = {}, b""
    start = at = misses = 0
    while at + 4 <= len(data):
        slot = hashed(data, at, 6, bits)
        older = last.get(slot)
        last[slot] = at
        if older is None or at - older > window or data[older : older + 4] != data[at : at + 4]:
            misses += 1
            at += 1 + (misses >> 5)
            continue
        length = common(data, older, at)
        if at - older > 65536 and length <= 4:
            at += 1
            continue
        while at > start and older and data[at - 1] == data[older - 1]:
            at, older, length = at - 1, older - 1, length + 1
        out += put(data, start, at, length, at - older)
        at += length
        start, misses = at, 0
        if at + 4 <= len(data):
            last[hashed(data, at - 2, 6, bits)] = at - 2
    return out + put(data, start, len(data), 0, 0)


class Chains:
    """Places with the same hash, newest first."""

    def __init__(self, data, count, bits):
        self.data, self.count, self.bits = data, count, bits
        self.places = {}
        self.slots = []

    def enter(self, at):
        slot = hashed(self.data, at, self.count, self.bits)
        chain = self.places.setdefault(slot, [])
        self.slots.append((slot, len(chain)))
        chain.append(at)

    def longest(self, at, window, depth, least):
        slot, number = self.slots[at]
        best, distance = least, 0
        for older in self.places[slot][:number][::-1][:depth]:
            if at - older > window:
                break
            length = common(self.data, older, at)
            if length > best and length - (at - older > 65536) > best - (distance > 65536):
                best, distance = length, at - older
        return (best, distance) if distance else (0, 0)


def ulz_lazy(data, bits, window, depth):
    chains, out = Chains(data, 4, bits), b""
    start = at = 0
    for place in range(len(data)):
        chains.enter(place)
    while at + 4 <= len(data):
        length, distance = chains.longest(at, window, depth, 3)
        if not length:
            at += 1
            continue
        while depth > 2 and at + 5 <= len(data):
            longer, farther = chains.longest(at + 1, window, depth, length)
            if not longer:
                break
            at, length, distance = at + 1, longer, farther
        out += put(data, start, at, length, distance)
        at += length
        start = at
    return out + put(data, start, len(data), 0, 0)


def ulz_best(data, bits, window, depth):
    """The cheapest parse: prices of all places forwards, then the way back."""
    near, far = Chains(data, 4, bits), Chains(data, 6, bits + 4)
    price, ways = {0: 1}, {0: (0, 0, 0)}
    skip = 0

    def offer(at, shortest, longest, distance):
        for length in range(longest if longest >= 128 else shortest, longest + 1):
            cost = price[at] + 3 + (distance > 65536) + (len(more(length - 19)) if length >= 19 else 0)
            if cost < price.get(at + length, 1 << 60):
                price[at + length], ways[at + length] = cost, (0, length, distance)

    for at in range(len(data)):
        run = ways[at][0] + 1
        cost = price[at] + 1 + (len(more(run - 7)) if run >= 7 else 0)
        cost -= len(more(run - 8)) if run >= 8 else 0
        if cost < price.get(at + 1, 1 << 60):
            price[at + 1], ways[at + 1] = cost, (run, 0, 0)
        near.enter(at)
        far.enter(at)
        if at + 4 > len(data) or at < skip:
            continue
        length, distance = near.longest(at, min(window, 65536), depth, 3)
        offer(at, 4, length, distance)
        if window > 65536 and length < 128:
            longer, farther = far.longest(at, window, depth, max(length, 5))
            if farther > 65536:
                offer(at, max(length + 1, 6), longer, farther)
                length = max(length, longer)
        if length >= 128:
            skip = at + length
    steps, at = [], len(data)
    while at:
        _, length, distance = ways[at]
        at -= max(length, 1)
        steps.append((at, length, distance))
    out, start = b"", 0
    for at, length, distance in reversed(steps):
        if length:
            out += put(data, start, at, length, distance)
            start = at + length
    return out + put(data, start, len(data), 0, 0)


def ulz_decoded(stored):
    out, read = bytearray(), 0

    def take_more(read):
        number = shift = 0
        while True:
            value = stored[read]
            number, read, shift = number | (value & 127) << shift, read + 1, shift + 7
            if value < 128:
                return number, read

    while read < len(stored):
        token = stored[read]
        read += 1
        run, length = token >> 5, (token & 15) + 4
        if run == 7:
            extra, read = take_more(read)
            run += extra
        out += stored[read : read + run]
        read += run
        if read == len(stored):
            return bytes(out)
        size = 3 if token & 16 else 2
        distance = 1 + int.from_bytes(stored[read : read + size], "little")
        read += size
        if length == 19:
            extra, read = take_more(read)
            length += extra
        for _ in range(length):
            out.append(out[-distance])
    raise AssertionError("it has no end")


def coded_symbols(rows, may, steps, total=1 << 24):
    """Arithmetic coding with whole numbers of any size: rows of probabilities by step and stream."""
    below, wide, out = 0, MASK, bytearray()
    for weights, symbols in zip(rows, steps, strict=True):
        for row, symbol in zip(weights, symbols, strict=True):
            if symbol < 0:
                continue
            numbers = [
                int(p * float(total - len(row))) + 1 if ok else 0 for p, ok in zip(row, may, strict=True)
            ]
            part = wide // sum(numbers)
            below, wide = below + part * sum(numbers[:symbol]) & MASK, part * numbers[symbol]
            while (below ^ (below + wide & MASK)) < 1 << 56 or wide < 1 << 48:
                if (below ^ (below + wide & MASK)) >= 1 << 56:
                    wide = -below & (1 << 48) - 1
                out.append(below >> 56)
                below, wide = below << 8 & MASK, wide << 8 & MASK
    return bytes(out) + below.to_bytes(8, "big")


def zero_runs(data):
    out, read = bytearray(), 0
    while read < len(data):
        end = read
        while end < len(data) and data[end] == 0 and end - read < 255:
            end += 1
        if end > read:
            out += bytes([0, end - read])
            read = end
        else:
            out.append(data[read])
            read += 1
    return bytes(out)
