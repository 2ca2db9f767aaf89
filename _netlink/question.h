/* Questions to one namespace; the rows that answer them go to a scan. All answer 0 or -errno. */
#ifndef RCN_QUESTION_H
#define RCN_QUESTION_H

#include "scan.h"
#include "socket.h"

#define RCN_RECEIVE (256 * 1024)

/* Where is asked, and where the rows go. */
struct rcn_asker {
    struct rcn_scan *scan;
    struct rcn_space *space;
    int fd;
    uint32_t sequence;
    char *buffer; /* RCN_RECEIVE bytes */
};

/* What is dumped: a message's type, and the family (0: all). */
struct rcn_table {
    uint16_t type;
    uint8_t family;
};

/* Dump a table; `index`: the rows of that link alone (0: of all). */
int rcn_ask_all(struct rcn_asker *asker, struct rcn_table table, int32_t index);
/* The same of few links, one question a link; a link that is not there has no rows. */
int rcn_ask_of_links(struct rcn_asker *asker, struct rcn_table table, const int32_t *links,
                     uint32_t n_links);
/* Single links by number instead of a dump of all: a host has thousands. */
int rcn_ask_links(struct rcn_asker *asker, const int32_t *links, uint32_t n_links);
/* The route to one address, of IPv4 or IPv6; no row where there is none. */
int rcn_ask_route(struct rcn_asker *asker, const struct rcn_peer *to);
/* The neighbours behind the link routes of ours that have been read, one question each. What is not
 * there is no error. */
int rcn_ask_gateways(struct rcn_asker *asker);

#endif
