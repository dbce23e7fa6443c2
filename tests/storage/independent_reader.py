"""A reader of a data directory, written from docs/format.md alone.

It imports nothing of o3storage.storage; hashes and the cipher come from the native module. It reads
files from a dict (name -> bytes) or a directory and gives rows, entries and frames.
"""

from __future__ import annotations

import os
import struct

from o3storage._native import ChaChaKey, blake3

NONE = 0xFFFFFFFF


def load(directory):
    """name -> content of all volumes."""
    folder = os.path.join(directory, "volumes")
    files = {}
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as file:
            files[name] = file.read()
    return files


def up(size):
    return (size + 4095) // 4096 * 4096


class Reader:
    def __init__(self, files, disk_key):
        self.volumes = {}
        self.keys = {}
        self.kind = {}
        for name, data in files.items():
            for at in (0, 4096):
                block = data[at : at + 4096]
                if len(block) == 4096 and blake3(block[32:]) == block[:32]:
                    break
            else:
                continue
            assert block[32:40] == b"O3VOLUME"
            version, kind, volume, _epoch, _born = struct.unpack_from("<IIQQQ", block, 40)
            assert version == 1 and name == f"{volume:010d}.{ {1: 'log', 2: 'bulk'}[kind] }"
            key = ChaChaKey.derive(disk_key, block[72:104], b"o3storage/1 file")
            assert key.seal(bytes(12), block[32:120], b"") == block[120:136]
            self.volumes[volume] = data
            self.keys[volume] = key
            self.kind[volume] = kind
        self.rows = {}
        self.entries = {}
        self.hard = {}
        self._changes = {}
        for volume in sorted(self.volumes):
            if self.kind[volume] == 1:
                self._log(volume)
            else:
                self._bulk(volume)
        gone = {key[1:] for key in self._changes if key[0] == 3}
        _, restated = self._changes.get(b"\x07", (0, bytes(8)))
        oldest = int.from_bytes(restated, "little")
        for key, (sequence, value) in self._changes.items():
            if sequence < oldest:
                continue
            if value is not None and not (key[0] == 1 and key[1:17] in gone) and key[0] != 3:
                self.rows[key] = value

    def record(self, volume, at):
        """(type, flags, a, b, sequence, body, size) or None."""
        data = self.volumes[volume]
        if data[at + 32 : at + 36] != b"O3Rc" or at + 80 > len(data):
            return None
        kind, source, flags, _, stored, _plain = struct.unpack_from("<BBBBII", data, at + 36)
        end = at + 80 + stored
        if end > len(data) or blake3(data[at + 32 : end]) != data[at : at + 32]:
            return None
        a = data[at + 48 : at + 64]
        b, sequence = struct.unpack_from("<QQ", data, at + 64)
        body = data[at + 80 : end]
        if source == 1:
            nonce = struct.pack("<QI", at, 0)
            body = self.keys[volume].unseal(nonce, data[at + 32 : at + 80], body)
        return kind, flags, a, b, sequence, body, 80 + stored

    def change(self, sequence, key, value):
        old = self._changes.get(key)
        if old is None or old[0] <= sequence:
            self._changes[key] = (sequence, value)

    def _log(self, volume):
        data = self.volumes[volume]
        at = 8192
        while at + 4096 <= len(data):
            groups = struct.unpack_from("<I", data, at + 156)[0]
            head = 160 + 80 * groups
            if data[at + 32 : at + 40] != b"O3BATCHh" or groups > 48:
                return
            if blake3(data[at + 32 : at + head]) != data[at : at + 32]:
                return
            own, offset = struct.unpack_from("<QQ", data, at + 40)
            size, payload, count = struct.unpack_from("<III", data, at + 144)
            assert (own, offset) == (volume, at)
            records, hashes = [], []
            place = at + head
            while place < at + head + payload:
                found = self.record(volume, place)
                if found is None:
                    return
                records.append((place, found))
                hashes.append(data[place : place + 32])
                place += found[-1]
            end = at + size
            good = len(records) == count and blake3(b"".join(hashes)) == data[at + 104 : at + 136]
            trailer = struct.unpack_from("<I", data, end - 16)[0]
            good = good and data[end - 8 : end] == b"O3BTend\n" and trailer == head + 16
            tail = end - trailer
            good = good and data[tail + 40 : tail + head] == data[at + 40 : at + head]
            if not good:
                return
            for i in range(groups):
                self._group(data, at + 160 + 80 * i)
            for place, found in records:
                self._take(volume, place, found)
            at = end

    def _group(self, data, at):
        group, mark, flags, _ = struct.unpack_from("<I4sII", data, at)
        assert mark == b"GRUP"
        first = struct.unpack_from("<Q", data, at + 16)[0]
        if flags & 6:
            self.hard[group] = struct.unpack_from("<QQQ", data, at + 48)
        if flags & 1:
            held = self.entries.setdefault(group, {})
            for index in [i for i in held if i >= first]:
                del held[index]

    def _take(self, volume, at, found):
        kind, flags, a, b, sequence, body, size = found
        if kind == 1 and sequence:
            run = struct.pack("<IQHII", volume, at, 1, size, size)
            self.change(sequence, b"\x01" + a + struct.pack(">I", NONE - b), run)
        elif kind == 2:
            group, _, term = struct.unpack("<IIQ", a)
            self.entries.setdefault(group, {})[b] = (term, flags, body)
        elif kind in (3, 4):
            rows, released = struct.unpack_from("<II", body)
            place = 8
            for _ in range(rows):
                key_size, value_size = struct.unpack_from("<HI", body, place)
                place += 6
                key = body[place : place + key_size]
                place += key_size
                if value_size == NONE:
                    self.change(sequence, key, None)
                else:
                    self.change(sequence, key, body[place : place + value_size])
                    place += value_size
            for _ in range(released):
                self.change(sequence, b"\x03" + body[place : place + 16], b"")
                place += 16
            assert place == len(body)
        elif kind == 5:
            place = 0
            while place < len(body):
                seq, key_size, value_size = struct.unpack_from("<QHI", body, place)
                place += 14
                key = body[place : place + key_size]
                place += key_size
                if value_size == NONE:
                    self.change(seq, key, None)
                else:
                    self.change(seq, key, body[place : place + value_size])
                    place += value_size
        elif kind == 6:
            self.entries.pop(struct.unpack_from("<I", a)[0], None)

    def _bulk(self, volume):
        data = self.volumes[volume]
        at = 8192
        while at + 80 <= len(data):
            found = self.record(volume, at)
            if found is None:
                at = up(at + 1)
                continue
            if found[0] == 5:
                self._take(volume, at, found)
            at += found[-1]

    # --- streams

    def streams(self):
        """stream id -> {frame number: (volume, offset, record size)}."""
        found = {}
        for key, value in self.rows.items():
            if key[0] != 1:
                continue
            first = NONE - struct.unpack(">I", key[17:])[0]
            volume, offset, frames, size, last = struct.unpack("<IQHII", value)
            for i in range(frames):
                place = (volume, offset + i * up(size), last if i == frames - 1 else size)
                found.setdefault(key[1:17], {})[first + i] = place
        return found

    def frame(self, stream, number):
        """(ciphertext, plain size, last)."""
        volume, offset, size = self.streams()[stream][number]
        kind, flags, a, b, _, body, record = self.record(volume, offset)
        assert (kind, a, b, record) == (1, stream, number, size)
        return body, len(body) - 16, bool(flags & 1)

    def extract(self, stream, kek, salt):
        """The plaintext of a whole stream."""
        key = ChaChaKey.derive(kek, salt, b"o3storage/1 stream")
        parts = []
        for number in sorted(self.streams()[stream]):
            body, size, last = self.frame(stream, number)
            aad = struct.pack(">16sQIB", stream, number, size, last)
            parts.append(key.unseal(struct.pack("<QI", number, 0), aad, body))
        assert last
        return b"".join(parts)
