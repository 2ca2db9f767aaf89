/* Which routes of the host lead to given addresses. */

#include "message.h"
#include "question.h"

#include <errno.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What the kernel refuses to route leads to nowhere, which is a route as well. */
static void leads_nowhere(const struct rcn_peer *to, struct rcn_route *found)
{
    memcpy(found->to, to->address, sizeof found->to);
    found->family = to->family;
    found->prefix = to->family == AF_INET6 ? 128 : 32;
    found->table = RT_TABLE_MAIN;
    found->type = RTN_UNREACHABLE;
}

int rcn_routes_to(const struct rcn_peer *to, uint32_t n_to, struct rcn_route *found)
{
    struct rcn_scan scan;
    struct rcn_space space;
    struct rcn_asker asker = {.scan = &scan, .space = &space, .fd = -1};
    int error = 0;

    memset(&scan, 0, sizeof scan);
    memset(&space, 0, sizeof space);
    memset(found, 0, n_to * sizeof *found);
    asker.buffer = malloc(RCN_RECEIVE);
    if (!asker.buffer)
        return -ENOMEM;
    asker.fd = rcn_socket_open();
    if (asker.fd < 0)
        error = asker.fd;
    for (uint32_t i = 0; i < n_to && !error; i++) {
        scan.used[RCN_ROUTES] = 0;
        space.n_routes = 0;
        error = rcn_ask_route(&asker, &to[i]);
        if (!error && space.n_routes)
            memcpy(&found[i], scan.rows[RCN_ROUTES], sizeof found[i]);
        if (error == -EINVAL || error == -EACCES || error == -EHOSTUNREACH) {
            leads_nowhere(&to[i], &found[i]);
            error = 0;
        }
        if (error == -ENETUNREACH)
            error = 0;
    }
    if (asker.fd >= 0)
        close(asker.fd);
    rcn_scan_free(&scan);
    free(asker.buffer);
    return error;
}
