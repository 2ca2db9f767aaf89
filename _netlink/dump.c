/* Reading dumps: the kernel's answers as rows. Its lengths are not trusted. */
#define _GNU_SOURCE
#include "message.h"
#include "scan.h"
#include "socket.h"

#include <errno.h>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/ipv6.h>
#include <linux/neighbour.h>
#include <net/if_arp.h>
#include <stdlib.h>
#include <sys/socket.h>

#ifndef IFA_PROTO
#define IFA_PROTO 11
#endif

void *rcn_grow(struct rcn_scan *scan, int which, size_t size)
{
    if (size > scan->room[which] - scan->used[which]) {
        size_t room = scan->room[which] ? scan->room[which] * 2 : 4096;
        while (room - scan->used[which] < size)
            room *= 2;
        char *rows = realloc(scan->rows[which], room);
        if (!rows)
            return NULL;
        scan->rows[which] = rows;
        scan->room[which] = room;
    }
    void *place = scan->rows[which] + scan->used[which];
    memset(place, 0, size);
    scan->used[which] += size;
    return place;
}

/* One of an array of 32-bit numbers that are small. */
static uint8_t small(const struct rcn_attribute *all, size_t number)
{
    int32_t value;

    if (all->size < (number + 1) * sizeof value)
        return RCN_NO_IPV6;
    memcpy(&value, all->data + number * sizeof value, sizeof value);
    return value < 0 || value >= RCN_NO_IPV6 ? RCN_NO_IPV6 - 1 : (uint8_t)value;
}

static void read_inet6(struct rcn_link *link, struct rcn_attributes all)
{
    struct rcn_attribute one, inner;

    while (rcn_next(&all, &one)) {
        if (one.type != AF_INET6)
            continue;
        struct rcn_attributes inet6 = rcn_inside(&one);
        while (rcn_next(&inet6, &inner))
            if (inner.type == IFLA_INET6_ADDR_GEN_MODE)
                link->gen_mode = rcn_u8(&inner);
            else if (inner.type == IFLA_INET6_CONF) {
                link->accept_ra = small(&inner, DEVCONF_ACCEPT_RA);
                link->ipv6_off = small(&inner, DEVCONF_DISABLE_IPV6);
            }
    }
}

static void read_info(struct rcn_link *link, struct rcn_attributes all)
{
    struct rcn_attribute one, inner;
    bool port = false, learns = false;

    while (rcn_next(&all, &one)) {
        if (one.type == IFLA_INFO_KIND)
            rcn_copy(link->kind, sizeof link->kind - 1, &one);
        else if (one.type == IFLA_INFO_SLAVE_KIND)
            port = one.size >= 6 && !memcmp(one.data, "bridge", 6);
        else if (one.type == IFLA_INFO_SLAVE_DATA && port) {
            struct rcn_attributes data = rcn_inside(&one);
            while (rcn_next(&data, &inner)) {
                if (inner.type == IFLA_BRPORT_ISOLATED && rcn_u8(&inner))
                    link->port |= RCN_PORT_ISOLATED;
                else if (inner.type == IFLA_BRPORT_MODE && rcn_u8(&inner))
                    link->port |= RCN_PORT_HAIRPIN;
                else if (inner.type == IFLA_BRPORT_LOCKED && rcn_u8(&inner))
                    link->port |= RCN_PORT_LOCKED;
                else if (inner.type == IFLA_BRPORT_LEARNING)
                    learns = rcn_u8(&inner);
            }
        }
    }
    /* A locked port that learns lets through what it has learned, from an LLDP frame for one. */
    if (learns)
        link->port &= (uint8_t)~RCN_PORT_LOCKED;
}

static int read_link(struct rcn_scan *scan, struct rcn_space *space, const char *data, size_t size)
{
    struct ifinfomsg message;
    struct rcn_attribute one;

    if (size < sizeof message)
        return -EBADMSG;
    memcpy(&message, data, sizeof message);
    struct rcn_link *link = rcn_grow(scan, RCN_LINKS, sizeof *link);
    if (!link)
        return -ENOMEM;
    space->n_links++;
    link->index = message.ifi_index;
    link->flags = message.ifi_flags;
    link->peer_nsid = -1;
    link->gen_mode = link->accept_ra = link->ipv6_off = RCN_NO_IPV6;
    struct rcn_attributes all = {data + NLMSG_ALIGN(sizeof message),
                                 size - NLMSG_ALIGN(sizeof message)};
    while (rcn_next(&all, &one)) {
        switch (one.type) {
        case IFLA_IFNAME:
            rcn_copy(link->name, sizeof link->name - 1, &one);
            break;
        case IFLA_ADDRESS:
            rcn_copy(link->mac, sizeof link->mac, &one);
            break;
        case IFLA_MTU:
            link->mtu = rcn_u32(&one);
            break;
        case IFLA_MASTER:
            link->master = (int32_t)rcn_u32(&one);
            break;
        case IFLA_LINK:
            link->peer = (int32_t)rcn_u32(&one);
            break;
        case IFLA_GROUP:
            link->group = rcn_u32(&one);
            break;
        case IFLA_LINK_NETNSID:
            link->peer_nsid = (int32_t)rcn_u32(&one);
            break;
        case IFLA_AF_SPEC:
            read_inet6(link, rcn_inside(&one));
            break;
        case IFLA_LINKINFO:
            read_info(link, rcn_inside(&one));
            break;
        case IFLA_IFALIAS: {
            char *text = rcn_grow(scan, RCN_HEAP, one.size);
            if (one.size && !text)
                return -ENOMEM;
            memcpy(text, one.data, one.size);
            link->alias = (uint32_t)(scan->used[RCN_HEAP] - one.size);
            link->alias_size = (uint32_t)strnlen(text, one.size);
            break;
        }
        default:
            break;
        }
    }
    return 0;
}

static int read_address(struct rcn_scan *scan, struct rcn_space *space, const char *data,
                        size_t size)
{
    struct ifaddrmsg message;
    struct rcn_attribute one;
    bool local = false;

    if (size < sizeof message)
        return -EBADMSG;
    memcpy(&message, data, sizeof message);
    if (message.ifa_family != AF_INET && message.ifa_family != AF_INET6)
        return 0;
    struct rcn_address *row = rcn_grow(scan, RCN_ADDRESSES, sizeof *row);
    if (!row)
        return -ENOMEM;
    space->n_addresses++;
    row->index = (int32_t)message.ifa_index;
    row->flags = message.ifa_flags;
    row->family = message.ifa_family;
    row->prefix = message.ifa_prefixlen;
    row->scope = message.ifa_scope;
    struct rcn_attributes all = {data + NLMSG_ALIGN(sizeof message),
                                 size - NLMSG_ALIGN(sizeof message)};
    while (rcn_next(&all, &one)) {
        /* IFA_ADDRESS is the peer's where a link has one, IFA_LOCAL then ours. */
        if (one.type == IFA_LOCAL || (one.type == IFA_ADDRESS && !local)) {
            rcn_copy(row->address, sizeof row->address, &one);
            local = one.type == IFA_LOCAL;
        } else if (one.type == IFA_FLAGS) {
            row->flags = rcn_u32(&one);
        } else if (one.type == IFA_PROTO) {
            row->protocol = rcn_u8(&one);
        }
    }
    return 0;
}

static int read_route(struct rcn_scan *scan, struct rcn_space *space, const char *data, size_t size)
{
    struct rtmsg message;
    struct rcn_attribute one;

    if (size < sizeof message)
        return -EBADMSG;
    memcpy(&message, data, sizeof message);
    bool other = message.rtm_type == RTN_LOCAL || message.rtm_type == RTN_BROADCAST ||
                 message.rtm_type == RTN_ANYCAST || message.rtm_type == RTN_MULTICAST;
    if (other || message.rtm_flags & RTM_F_CLONED ||
        (message.rtm_family != AF_INET && message.rtm_family != AF_INET6))
        return 0;
    struct rcn_route *row = rcn_grow(scan, RCN_ROUTES, sizeof *row);
    if (!row)
        return -ENOMEM;
    space->n_routes++;
    row->family = message.rtm_family;
    row->prefix = message.rtm_dst_len;
    row->protocol = message.rtm_protocol;
    row->scope = message.rtm_scope;
    row->type = message.rtm_type;
    row->table = message.rtm_table;
    struct rcn_attributes all = {data + NLMSG_ALIGN(sizeof message),
                                 size - NLMSG_ALIGN(sizeof message)};
    while (rcn_next(&all, &one)) {
        switch (one.type) {
        case RTA_DST:
            rcn_copy(row->to, sizeof row->to, &one);
            break;
        case RTA_GATEWAY:
            rcn_copy(row->via, sizeof row->via, &one);
            row->has_via = 1;
            break;
        case RTA_PREFSRC:
            rcn_copy(row->source, sizeof row->source, &one);
            row->has_source = 1;
            break;
        case RTA_OIF:
            row->index = (int32_t)rcn_u32(&one);
            break;
        case RTA_TABLE:
            row->table = rcn_u32(&one);
            break;
        case RTA_PRIORITY:
            row->metric = rcn_u32(&one);
            break;
        default:
            break;
        }
    }
    return 0;
}

static int read_rule(struct rcn_scan *scan, struct rcn_space *space, const char *data, size_t size)
{
    struct fib_rule_hdr message;
    struct rcn_attribute one;

    if (size < sizeof message)
        return -EBADMSG;
    memcpy(&message, data, sizeof message);
    if (message.family != AF_INET && message.family != AF_INET6)
        return 0;
    struct rcn_rule *row = rcn_grow(scan, RCN_RULES, sizeof *row);
    if (!row)
        return -ENOMEM;
    space->n_rules++;
    row->family = message.family;
    row->prefix = message.src_len;
    row->table = message.table;
    row->plain = !message.dst_len && !message.tos && message.action == FR_ACT_TO_TBL &&
                 !(message.flags & FIB_RULE_INVERT);
    struct rcn_attributes all = {data + NLMSG_ALIGN(sizeof message),
                                 size - NLMSG_ALIGN(sizeof message)};
    while (rcn_next(&all, &one)) {
        switch (one.type) {
        case FRA_SRC:
            rcn_copy(row->source, sizeof row->source, &one);
            break;
        case FRA_TABLE:
            row->table = rcn_u32(&one);
            break;
        case FRA_PRIORITY:
            row->priority = rcn_u32(&one);
            break;
        case FRA_PROTOCOL:
            row->protocol = rcn_u8(&one);
            break;
        case FRA_SUPPRESS_PREFIXLEN:
        case FRA_SUPPRESS_IFGROUP:
            if (rcn_u32(&one) != UINT32_MAX)
                row->plain = 0;
            break;
        case FRA_UNSPEC:
        case FRA_PAD:
            break;
        default: /* a mark, an interface, a port range, ... */
            row->plain = 0;
        }
    }
    return 0;
}

static int read_neighbour(struct rcn_scan *scan, struct rcn_space *space, const char *data,
                          size_t size)
{
    struct ndmsg message;
    struct rcn_neighbour found;
    struct rcn_attribute one;
    uint8_t protocol = 0;

    if (size < sizeof message)
        return -EBADMSG;
    memcpy(&message, data, sizeof message);
    bool bridged = message.ndm_family == AF_BRIDGE;
    if (bridged) {
        if (message.ndm_state != NUD_NOARP || !(message.ndm_flags & NTF_STICKY))
            return 0;
    } else if (!(message.ndm_state & NUD_PERMANENT) || message.ndm_flags & NTF_PROXY ||
               (message.ndm_family != AF_INET && message.ndm_family != AF_INET6)) {
        return 0;
    }
    memset(&found, 0, sizeof found);
    found.index = message.ndm_ifindex;
    found.family = message.ndm_family;
    struct rcn_attributes all = {data + NLMSG_ALIGN(sizeof message),
                                 size - NLMSG_ALIGN(sizeof message)};
    while (rcn_next(&all, &one)) {
        if (one.type == NDA_DST)
            rcn_copy(found.address, sizeof found.address, &one);
        else if (one.type == NDA_LLADDR)
            rcn_copy(found.mac, sizeof found.mac, &one);
        else if (one.type == NDA_PROTOCOL)
            protocol = rcn_u8(&one);
        else if (one.type == NDA_VLAN && bridged)
            return 0; /* the kernel's copy for each VLAN of the port */
    }
    if (!bridged && protocol != RCN_PROTOCOL)
        return 0;
    struct rcn_neighbour *row = rcn_grow(scan, RCN_NEIGHBOURS, sizeof *row);
    if (!row)
        return -ENOMEM;
    space->n_neighbours++;
    *row = found;
    return 0;
}

struct rows {
    struct rcn_scan *scan;
    struct rcn_space *space;
};

static int read_row(void *into, uint16_t type, const char *data, size_t size)
{
    const struct rows *rows = into;

    switch (type) {
    case RTM_NEWLINK:
        return read_link(rows->scan, rows->space, data, size);
    case RTM_NEWADDR:
        return read_address(rows->scan, rows->space, data, size);
    case RTM_NEWROUTE:
        return read_route(rows->scan, rows->space, data, size);
    case RTM_NEWRULE:
        return read_rule(rows->scan, rows->space, data, size);
    case RTM_NEWNEIGH:
        return read_neighbour(rows->scan, rows->space, data, size);
    default:
        return 0;
    }
}

int rcn_scan_parse(struct rcn_scan *scan, struct rcn_space *space, const char *data, size_t size,
                   uint32_t sequence)
{
    struct rows rows = {scan, space};

    return rcn_walk(data, size, sequence, read_row, &rows);
}
