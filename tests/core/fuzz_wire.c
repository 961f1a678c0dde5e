/* libFuzzer target of what goes to a socket and comes from it: frames are those of the stream in
 * whatever pieces it comes, a request is what its parts say, and no byte outside of either is touched.
 *
 * Input: one byte that chooses, then the stream, or the memory of a batch and what is said of it. */
#include "fuzz_python.h"

static PyObject *one;

static const char *const source =
    "class Refused(Exception): pass\n"
    "MOST = 40_000\n"
    "def whole(data):\n"
    "    frames = []\n"
    "    while len(data) >= 4:\n"
    "        size = int.from_bytes(data[:4], 'big')\n"
    "        if size > MOST: return frames, True\n"
    "        if len(data) < 4 + size: break\n"
    "        frames.append(data[4 : 4 + size])\n"
    "        data = data[4 + size :]\n"
    "    return frames, False\n"
    "def frames(data, step):\n"
    "    reader, found, refused, at = native.FrameReader(MOST, Refused), [], False, 0\n"
    "    while at < len(data) and not refused:\n"
    "        def read_into(view):\n"
    "            piece = data[at : at + min(step + 1, len(view))]\n"
    "            view[: len(piece)] = piece\n"
    "            return len(piece)\n"
    "        try:\n"
    "            count, more = reader.read(read_into)\n"
    "        except Refused:\n"
    "            refused = True\n"
    "            break\n"
    "        at, refused = at + count, reader.refused is not None\n"
    "        found += more\n"
    "    assert (found, refused) == whole(data), (found, refused)\n"
    "def number(data, size):\n"
    "    taken = bytes(data[:size])\n"
    "    del data[:size]\n"
    "    return int.from_bytes(taken, 'big', signed=True)\n"
    "def request(data, version):\n"
    "    memory, told, rows, size = data, bytearray(data), [], 0\n"
    "    while told and len(rows) < 50:\n"
    "        spans = [(number(told, 2), number(told, 1)) for _ in range(number(told, 1) & 3)]\n"
    "        try:\n"
    "            body = native.Body(memory, number(told, 4) & 0xFFFF_FFFF, number(told, 8), 0, 0, spans)\n"
    "        except ValueError:\n"
    "            continue\n"
    "        assert b''.join(body.pieces) == b''.join(memory[a : a + n] for a, n in spans)\n"
    "        topic = memory[:16] if version >= 13 else str(number(told, 1) & 7) * 7\n"
    "        rows.append((topic, number(told, 4), body, number(told, 8), number(told, 2), number(told, 4)))\n"
    "        size += 61 + body.size_bytes\n"
    "    try:\n"
    "        made = native.produce_request(version, 1, 'c', -1, 1, None, rows)\n"
    "    except ValueError:\n"
    "        return\n"
    "    before = made.peek(1 << 30)\n"
    "    assert len(before) == made.size_bytes == 4 + int.from_bytes(before[:4], 'big')\n"
    "    assert len(before) >= size\n"
    "    for row in rows:\n"
    "        assert row[2].header(*row[3:]) in before and b''.join(row[2].pieces) in before\n"
    "    got, step = [], 1 + len(memory) % 97\n"
    "    while made.left_bytes:\n"
    "        got.append(made.peek(step))\n"
    "        made.advance(len(got[-1]))\n"
    "    assert b''.join(got) == before\n"
    "def one(data):\n"
    "    kind = data[0] >> 1\n"
    "    if data[0] & 1: frames(data[1:], kind * 37)\n"
    "    else: request(data[1:], 3 + kind % 11)\n";

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    PyObject *names = start_python(source);
    one = PyDict_GetItemString(names, "one");
    if (!one) python_failed();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    if (size < 1) return 0;
    PyObject *done = PyObject_CallFunction(one, "y#", (const char *)input, (Py_ssize_t)size);
    if (!done) python_failed();
    Py_DECREF(done);
    return 0;
}
