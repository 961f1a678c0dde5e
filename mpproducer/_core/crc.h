/* CRC-32C, the checksum of a record batch, taken while its bytes are in cache. */
#ifndef MP_CRC_H
#define MP_CRC_H

#include <stddef.h>
#include <stdint.h>

/* Lengths that are taken without a rest. */
#define MP_CRC_LANE 1360u /* three fill 4 KiB but for 16 bytes, a slot but for 64 */
#define MP_CRC_BLOCKS(n) ((n) * 3u * MP_CRC_LANE)

/* The checksum of what `crc` is of, followed by these bytes; 0 is that of nothing. */
uint32_t mp_crc32c(uint32_t crc, const uint8_t *data, size_t length);

/* The checksum of two parts, of which the second has `length` bytes. */
uint32_t mp_crc32c_join(uint32_t first, uint32_t second, uint64_t length);

#endif
