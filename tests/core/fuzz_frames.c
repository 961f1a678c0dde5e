/* libFuzzer target of the completion stream: whatever comes through the pipe, in whatever pieces, a
 * worker reads nothing outside its buffer, and every future has an outcome in the end.
 *
 * Input: one byte for the length of the first piece, then the stream. The batches that wait have the
 * ids 1 (three records) and 1 << 44 | 1 (one record). */
#include "fuzz_python.h"

static PyObject *once;

static const char source[] =
    "import os\n"
    "import mpproducer.producer\n"
    "from mpproducer import errors\n"
    "def once(data):\n"
    "    slots, partitions = 4, 2\n"
    "    segments = [os.memfd_create('segment') for _ in range(2)]\n"
    "    for fd, size in zip(segments, native.segment_sizes(slots, partitions, 1)):\n"
    "        os.ftruncate(fd, size)\n"
    "    pool = native.Pool(*segments, slots, partitions, 1, batch_size=9000,\n"
    "                       max_request_size=1 << 20, linger_us=10**6, generation=1)\n"
    "    pool.topic_ready(pool.topic_add('t'), partitions)\n"
    "    ours, theirs = os.pipe()\n"
    "    os.set_blocking(theirs, False)\n"
    "    wake = os.eventfd(0, os.EFD_NONBLOCK)\n"
    "    attachment = native.Attachment(*segments, wake, ours, 1, slots, partitions, 1)\n"
    "    producer = native.ProducerBase()\n"
    "    producer._attachment, producer._max_block_ns = attachment, 0\n"
    "    futures = [producer.send('t', b'v', partition=number // 3) for number in range(4)]\n"
    "    many = producer.send_many('t', [b'a', b'b'], partition=1)\n"
    "    called = []\n"
    "    for future in futures:\n"
    "        future.add_done_callback(called.append)\n"
    "    first = data[0] if data else 0\n"
    "    for piece in (data[1:1 + first], data[1 + first:]):\n"
    "        if piece:\n"
    "            os.write(theirs, piece)\n"
    "        attachment.drain()\n"
    "    os.close(theirs)\n"
    "    attachment.drain()\n"
    "    attachment.close()\n"
    "    for future in futures:\n"
    "        assert future.done(), 'a future without an outcome'\n"
    "        error = future.exception(timeout=0)\n"
    "        assert error is None or isinstance(error, errors.KafkaError), error\n"
    "    assert len(called) == len(futures), 'callbacks were forgotten, or called twice'\n"
    "    producer._attachment = None\n"
    "    pool.close()\n";

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    once = PyDict_GetItemString(start_python(source), "once");
    return once ? 0 : -1;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    if (size > 60000) return 0; /* what a pipe holds */
    PyObject *done = PyObject_CallFunction(once, "y#", (const char *)input, (Py_ssize_t)size);
    if (!done) python_failed();
    Py_DECREF(done);
    return 0;
}
