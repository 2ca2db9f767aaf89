#include "digest.h"

#include <string.h>

static uint64_t rotate(uint64_t word, int bits)
{
    return word << bits | word >> (64 - bits);
}

static void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

void rcn_digest_begin(struct rcn_digest *hash, const uint8_t *key)
{
    uint64_t halves[2];

    memcpy(halves, key, sizeof halves);
    hash->v[0] = halves[0] ^ 0x736f6d6570736575ULL;
    hash->v[1] = halves[1] ^ 0x646f72616e646f6dULL;
    hash->v[2] = halves[0] ^ 0x6c7967656e657261ULL;
    hash->v[3] = halves[1] ^ 0x7465646279746573ULL;
}

void rcn_digest_word(struct rcn_digest *hash, uint64_t word)
{
    hash->v[3] ^= word;
    sip_round(hash->v);
    sip_round(hash->v);
    hash->v[0] ^= word;
}

void rcn_digest_bytes(struct rcn_digest *hash, const char *data, size_t size)
{
    rcn_digest_word(hash, size);
    while (size) {
        uint64_t word = 0;
        size_t part = size < sizeof word ? size : sizeof word;
        memcpy(&word, data, part);
        rcn_digest_word(hash, word);
        data += part;
        size -= part;
    }
}

uint64_t rcn_digest_end(struct rcn_digest *hash)
{
    hash->v[2] ^= 0xff;
    for (int i = 0; i < 4; i++)
        sip_round(hash->v);
    return hash->v[0] ^ hash->v[1] ^ hash->v[2] ^ hash->v[3];
}
