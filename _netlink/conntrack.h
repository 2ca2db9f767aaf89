/* Which connections are stale: conntrack.c asks and deletes, entry.c reads, stale.c judges. */
#ifndef RCN_CONNTRACK_H
#define RCN_CONNTRACK_H

#include "rtnl_api.h"

#include <stdbool.h>

#define CTNETLINK(message) (NFNL_SUBSYS_CTNETLINK << 8 | (message))

/* One direction of an entry. */
struct rcn_tuple {
    struct rcn_peer source;
    struct rcn_peer destination;
    uint8_t protocol;
    bool has_ports; /* icmp, for one, has none */
    uint16_t source_port;
    uint16_t destination_port;
    const char *raw; /* the attribute's payload, to name the entry by */
    size_t raw_size;
};

struct rcn_stretch;

/* What is to go, and what was found of it so far. */
struct rcn_stale {
    const struct rcn_peer *peers;
    uint32_t n_peers;
    struct rcn_published *runs; /* sorted and apart: see stale.c */
    size_t n_runs;
    struct rcn_stretch *locals; /* addresses of the host; sorted and apart once closed */
    size_t n_locals;
    size_t room_locals;
    uint32_t seen;
    char *messages; /* one to delete each entry that was found, ready to be sent */
    size_t used;    /* bytes */
    size_t room;
};

/* Begin with nothing found; `peers` must outlive it. To be freed by rcn_stale_free, also after an
 * error. */
int rcn_stale_open(struct rcn_stale *stale, const struct rcn_peer *peers, uint32_t n_peers,
                   const struct rcn_published *ports, uint32_t n_ports);
void rcn_stale_free(struct rcn_stale *stale);
/* Whether a run is published on every address of the host, which then are to be told. */
bool rcn_stale_wants_locals(const struct rcn_stale *stale, uint8_t family);
/* One prefix of which every address is the host's own. */
int rcn_stale_local(struct rcn_stale *stale, const struct rcn_peer *address, uint8_t prefix);
/* All have been told. */
void rcn_stale_locals_close(struct rcn_stale *stale);
bool rcn_stale_holds(const struct rcn_stale *stale, const struct rcn_tuple *original,
                     const struct rcn_tuple *reply);

/* Read one datagram of conntrack's dump, or of the dump of routes; what the fuzzer calls. They
 * answer 1 where the dump is over, 0 where more follows. */
int rcn_conntrack_parse(struct rcn_stale *stale, const char *data, size_t size, uint32_t sequence);
int rcn_locals_parse(struct rcn_stale *stale, const char *data, size_t size, uint32_t sequence);

#endif
