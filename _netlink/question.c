/* Questions to one namespace: dumps, and single rows asked for by what they are. */
#define _GNU_SOURCE
#include "question.h"

#include <errno.h>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <sys/socket.h>

#define LOOPBACK 1
#define SKIP_STATS (1 << 3) /* RTEXT_FILTER_SKIP_STATS: half of a link's message */
#define TORN_TRIES 50

/* `index`: ask for the rows of that link alone (0: of all). Rules belong to none. */
static int ask(int fd, struct rcn_table table, int32_t index, uint32_t sequence)
{
    struct {
        struct nlmsghdr header;
        union {
            struct ifinfomsg link;
            struct ifaddrmsg address;
            struct rtmsg route;
            struct fib_rule_hdr rule;
            struct ndmsg neighbour;
            char room[32];
        } body;
    } request;
    size_t size = sizeof(struct rtmsg);
    uint16_t type = table.type, by_link = 0;

    memset(&request, 0, sizeof request);
    request.body.room[0] = (char)table.family; /* where each of these has it */
    if (type == RTM_GETLINK) {
        struct rtattr mask = {RTA_LENGTH(4), IFLA_EXT_MASK};
        uint32_t value = SKIP_STATS;
        size = sizeof(struct ifinfomsg);
        memcpy(request.body.room + size, &mask, sizeof mask);
        memcpy(request.body.room + size + sizeof mask, &value, sizeof value);
        size += sizeof mask + sizeof value;
    } else if (type == RTM_GETADDR) {
        size = sizeof(struct ifaddrmsg);
        request.body.address.ifa_index = (uint32_t)index;
    } else if (type == RTM_GETRULE) {
        size = sizeof(struct fib_rule_hdr);
    } else if (type == RTM_GETNEIGH) {
        size = sizeof(struct ndmsg);
        by_link = NDA_IFINDEX;
    } else if (type == RTM_GETROUTE) {
        by_link = RTA_OIF;
    }
    if (by_link && index) {
        struct rtattr link = {RTA_LENGTH(4), by_link};
        memcpy(request.body.room + size, &link, sizeof link);
        memcpy(request.body.room + size + sizeof link, &index, sizeof index);
        size += sizeof link + sizeof index;
    }
    request.header.nlmsg_len = (uint32_t)NLMSG_LENGTH(size);
    request.header.nlmsg_type = type;
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.header.nlmsg_seq = sequence;
    return send(fd, &request, request.header.nlmsg_len, 0) < 0 ? -errno : 0;
}

static int dump_once(struct rcn_asker *asker, struct rcn_table table, int32_t index)
{
    uint32_t sequence = ++asker->sequence;
    int done = ask(asker->fd, table, index, sequence);

    while (!done) {
        ssize_t got = recv(asker->fd, asker->buffer, RCN_RECEIVE, 0);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        done = rcn_scan_parse(asker->scan, asker->space, asker->buffer, (size_t)got, sequence);
    }
    return done < 0 ? done : 0;
}

/* What is left of a torn dump must not be taken for the answer to the next question: it carries an
 * old sequence number, and is passed over by that. */
int rcn_ask_all(struct rcn_asker *asker, struct rcn_table table, int32_t index)
{
    struct rcn_scan *scan = asker->scan;
    struct rcn_space before = *asker->space;
    size_t used[6];
    int error = 0;

    memcpy(used, scan->used, sizeof used);
    for (int i = 0; i < TORN_TRIES; i++) {
        error = dump_once(asker, table, index);
        if (error != -EINTR && error != -EBUSY)
            return error;
        *asker->space = before;
        memcpy(scan->used, used, sizeof used);
        /* The rest of the torn answer is still to come, and the kernel refuses a second dump
         * before. */
        while (recv(asker->fd, asker->buffer, RCN_RECEIVE, MSG_DONTWAIT) > 0)
            ;
    }
    return error;
}

/* One question with one answer. */
static int ask_one(struct rcn_asker *asker, const struct nlmsghdr *request)
{
    ssize_t got;

    if (send(asker->fd, request, request->nlmsg_len, 0) < 0)
        return -errno;
    do
        got = recv(asker->fd, asker->buffer, RCN_RECEIVE, 0);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    int error =
        rcn_scan_parse(asker->scan, asker->space, asker->buffer, (size_t)got, request->nlmsg_seq);
    return error < 0 ? error : 0;
}

int rcn_ask_gateways(struct rcn_asker *asker)
{
    struct rcn_scan *scan = asker->scan;
    const struct rcn_space *space = asker->space;
    size_t size = sizeof(struct rcn_route);
    size_t first = scan->used[RCN_ROUTES] - space->n_routes * size;

    for (uint32_t i = 0; i < space->n_routes; i++) {
        struct rcn_route route;
        memcpy(&route, scan->rows[RCN_ROUTES] + first + i * size, sizeof route);
        size_t width = route.family == AF_INET6 ? 16 : 4;
        if (route.has_via || route.protocol != RCN_PROTOCOL || route.prefix != width * 8)
            continue;
        struct {
            struct nlmsghdr header;
            struct ndmsg neighbour;
            struct rtattr attribute;
            uint8_t address[16];
        } request;
        memset(&request, 0, sizeof request);
        request.header.nlmsg_len =
            (uint32_t)(NLMSG_LENGTH(sizeof(struct ndmsg)) + RTA_LENGTH(width));
        request.header.nlmsg_type = RTM_GETNEIGH;
        request.header.nlmsg_flags = NLM_F_REQUEST;
        request.header.nlmsg_seq = ++asker->sequence;
        request.neighbour.ndm_family = route.family;
        request.neighbour.ndm_ifindex = route.index;
        request.attribute.rta_type = NDA_DST;
        request.attribute.rta_len = (uint16_t)RTA_LENGTH(width);
        memcpy(request.address, route.to, width);
        int error = ask_one(asker, &request.header);
        if (error && error != -ENOENT && error != -ENODEV)
            return error;
    }
    return 0;
}

int rcn_ask_route(struct rcn_asker *asker, const struct rcn_peer *to)
{
    size_t width = to->family == AF_INET6 ? 16 : 4;
    struct {
        struct nlmsghdr header;
        struct rtmsg route;
        struct rtattr attribute;
        uint8_t address[16];
    } request;

    memset(&request, 0, sizeof request);
    request.header.nlmsg_len = (uint32_t)(NLMSG_LENGTH(sizeof(struct rtmsg)) + RTA_LENGTH(width));
    request.header.nlmsg_type = RTM_GETROUTE;
    request.header.nlmsg_flags = NLM_F_REQUEST;
    request.header.nlmsg_seq = ++asker->sequence;
    request.route.rtm_family = to->family;
    request.route.rtm_dst_len = (uint8_t)(width * 8);
    /* IPv6 says which table it is without being asked, and refuses that flag. */
    request.route.rtm_flags = RTM_F_FIB_MATCH | (width == 4 ? RTM_F_LOOKUP_TABLE : 0);
    request.attribute.rta_type = RTA_DST;
    request.attribute.rta_len = (uint16_t)RTA_LENGTH(width);
    memcpy(request.address, to->address, width);
    return ask_one(asker, &request.header);
}

int rcn_ask_links(struct rcn_asker *asker, const int32_t *links, uint32_t n_links)
{
    for (uint32_t i = 0; i < n_links; i++) {
        struct {
            struct nlmsghdr header;
            struct ifinfomsg link;
            struct rtattr attribute;
            uint32_t mask;
        } request;
        memset(&request, 0, sizeof request);
        request.header.nlmsg_len = sizeof request;
        request.header.nlmsg_type = RTM_GETLINK;
        request.header.nlmsg_flags = NLM_F_REQUEST;
        request.header.nlmsg_seq = ++asker->sequence;
        request.link.ifi_index = links[i];
        request.attribute.rta_type = IFLA_EXT_MASK;
        request.attribute.rta_len = RTA_LENGTH(sizeof request.mask);
        request.mask = SKIP_STATS;
        int error = ask_one(asker, &request.header);
        if (error && error != -ENODEV)
            return error;
    }
    return 0;
}

int rcn_ask_of_links(struct rcn_asker *asker, struct rcn_table table, const int32_t *links,
                     uint32_t n_links)
{
    int error = 0;

    for (uint32_t i = 0; i < n_links && !error; i++) {
        /* Each of these questions is a walk through all routes or neighbours of the host, and `lo`
         * has none that matter here. */
        if (links[i] == LOOPBACK && table.type != RTM_GETADDR)
            continue;
        error = rcn_ask_all(asker, table, links[i]);
        if (error == -ENODEV)
            error = 0;
    }
    return error;
}
