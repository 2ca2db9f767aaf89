/* A keyed digest of what a scan has seen. */
#ifndef RCN_DIGEST_H
#define RCN_DIGEST_H

#include <stddef.h>
#include <stdint.h>

/* SipHash-2-4 over 8-byte words (Aumasson and Bernstein, 2012). Workloads choose what stands in
 * their namespaces: without the key they cannot make two states look alike. */
struct rcn_digest {
    uint64_t v[4];
};

/* `key`: sixteen bytes. */
void rcn_digest_begin(struct rcn_digest *hash, const uint8_t *key);
void rcn_digest_word(struct rcn_digest *hash, uint64_t word);
/* The size comes first: what is padded cannot be taken for what is not. */
void rcn_digest_bytes(struct rcn_digest *hash, const char *data, size_t size);
uint64_t rcn_digest_end(struct rcn_digest *hash);

#endif
