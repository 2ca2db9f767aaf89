/* Reading conntrack's dump and the host's own addresses. The kernel's lengths are not trusted. */
#define _GNU_SOURCE
#include "conntrack.h"
#include "socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <stdlib.h>
#include <sys/socket.h>

static bool read_address(struct rcn_peer *peer, uint8_t family, const struct rcn_attribute *one)
{
    if (one->size != (family == AF_INET6 ? 16 : 4))
        return false;
    rcn_copy(peer->address, sizeof peer->address, one);
    return true;
}

static uint16_t read_port(const struct rcn_attribute *one)
{
    uint16_t port = 0;

    if (one->size >= sizeof port)
        memcpy(&port, one->data, sizeof port);
    return ntohs(port);
}

static void read_protocol(struct rcn_tuple *tuple, struct rcn_attributes all)
{
    struct rcn_attribute one;
    unsigned ports = 0;

    while (rcn_next(&all, &one)) {
        if (one.type == CTA_PROTO_NUM) {
            tuple->protocol = rcn_u8(&one);
        } else if (one.type == CTA_PROTO_SRC_PORT) {
            tuple->source_port = read_port(&one);
            ports |= 1;
        } else if (one.type == CTA_PROTO_DST_PORT) {
            tuple->destination_port = read_port(&one);
            ports |= 2;
        }
    }
    tuple->has_ports = ports == 3;
}

/* Whether both addresses are there. */
static bool read_tuple(struct rcn_tuple *tuple, uint8_t family, const struct rcn_attribute *nest)
{
    bool six = family == AF_INET6, source = false, destination = false;
    struct rcn_attributes all = rcn_inside(nest);
    struct rcn_attribute one, inner;

    memset(tuple, 0, sizeof *tuple);
    tuple->source.family = tuple->destination.family = family;
    tuple->raw = nest->data;
    tuple->raw_size = nest->size;
    while (rcn_next(&all, &one)) {
        if (one.type == CTA_TUPLE_PROTO) {
            read_protocol(tuple, rcn_inside(&one));
        } else if (one.type == CTA_TUPLE_IP) {
            struct rcn_attributes ip = rcn_inside(&one);
            while (rcn_next(&ip, &inner))
                if (inner.type == (six ? CTA_IP_V6_SRC : CTA_IP_V4_SRC))
                    source = read_address(&tuple->source, family, &inner);
                else if (inner.type == (six ? CTA_IP_V6_DST : CTA_IP_V4_DST))
                    destination = read_address(&tuple->destination, family, &inner);
        }
    }
    return source && destination;
}

static char *put(char *at, uint16_t type, const void *payload, size_t size)
{
    struct rtattr header = {(uint16_t)RTA_LENGTH(size), type};

    memcpy(at, &header, sizeof header);
    memcpy(at + RTA_LENGTH(0), payload, size);
    return at + RTA_SPACE(size);
}

/* Keep the message that deletes an entry.
 *
 *   | nlmsghdr | nfgenmsg | CTA_TUPLE_ORIG as it was told | CTA_ID | CTA_ZONE, where it has one |
 *
 * The id keeps a new entry of the same tuple from being hit. Without a tuple the kernel would
 * delete everything. */
static int keep(struct rcn_stale *stale, uint8_t family, const struct rcn_tuple *original,
                const struct rcn_attribute *id, const struct rcn_attribute *zone)
{
    struct nfgenmsg body = {.nfgen_family = family, .version = NFNETLINK_V0};
    struct nlmsghdr header = {.nlmsg_type = CTNETLINK(IPCTNL_MSG_CT_DELETE),
                              .nlmsg_flags = NLM_F_REQUEST};
    size_t size = NLMSG_SPACE(sizeof body) + RTA_SPACE(original->raw_size) + RTA_SPACE(id->size) +
                  (zone->data ? RTA_SPACE(zone->size) : 0);

    if (size > stale->room - stale->used) {
        size_t room = stale->room ? stale->room * 2 : 65536;
        while (room - stale->used < size)
            room *= 2;
        char *messages = realloc(stale->messages, room);
        if (!messages)
            return -ENOMEM;
        stale->messages = messages;
        stale->room = room;
    }
    char *at = stale->messages + stale->used;
    memset(at, 0, size);
    header.nlmsg_len = (uint32_t)size;
    memcpy(at, &header, sizeof header);
    memcpy(at + NLMSG_HDRLEN, &body, sizeof body);
    at = put(at + NLMSG_SPACE(sizeof body), CTA_TUPLE_ORIG | NLA_F_NESTED, original->raw,
             original->raw_size);
    at = put(at, CTA_ID, id->data, id->size);
    if (zone->data)
        (void)put(at, CTA_ZONE, zone->data, zone->size);
    stale->used += size;
    return 0;
}

static int read_entry(void *into, uint16_t type, const char *data, size_t size)
{
    struct rcn_stale *stale = into;
    struct rcn_attribute one, id = {0}, zone = {0};
    struct rcn_tuple original, reply;
    struct nfgenmsg message;
    bool has_original = false, has_reply = false;

    if (type != CTNETLINK(IPCTNL_MSG_CT_NEW))
        return 0;
    if (size < sizeof message)
        return -EBADMSG;
    memcpy(&message, data, sizeof message);
    uint8_t family = message.nfgen_family;
    if (family != AF_INET && family != AF_INET6)
        return 0;
    stale->seen++;
    struct rcn_attributes all = {data + sizeof message, size - sizeof message};
    while (rcn_next(&all, &one)) {
        if (one.type == CTA_TUPLE_ORIG)
            has_original = read_tuple(&original, family, &one);
        else if (one.type == CTA_TUPLE_REPLY)
            has_reply = read_tuple(&reply, family, &one);
        else if (one.type == CTA_ID && one.size == sizeof(uint32_t))
            id = one;
        else if (one.type == CTA_ZONE && one.size == sizeof(uint16_t))
            zone = one;
    }
    /* An entry that cannot be named exactly is left alone. */
    if (!has_original || !has_reply || !id.data || !rcn_stale_holds(stale, &original, &reply))
        return 0;
    return keep(stale, family, &original, &id, &zone);
}

int rcn_conntrack_parse(struct rcn_stale *stale, const char *data, size_t size, uint32_t sequence)
{
    return rcn_walk(data, size, sequence, read_entry, stale);
}

static int read_local(void *into, uint16_t type, const char *data, size_t size)
{
    struct rcn_peer address = {0};
    struct rcn_attribute one;
    struct rtmsg message;
    bool whole = false;

    if (type != RTM_NEWROUTE)
        return 0;
    if (size < sizeof message)
        return -EBADMSG;
    memcpy(&message, data, sizeof message);
    uint8_t family = message.rtm_family;
    /* Other tables' are local to what was marked for them (TPROXY) or to a VRF. */
    if (message.rtm_type != RTN_LOCAL || message.rtm_table != RT_TABLE_LOCAL ||
        (family != AF_INET && family != AF_INET6))
        return 0;
    address.family = family;
    struct rcn_attributes all = {data + NLMSG_ALIGN(sizeof message),
                                 size - NLMSG_ALIGN(sizeof message)};
    while (rcn_next(&all, &one))
        if (one.type == RTA_DST)
            whole = read_address(&address, family, &one);
    return whole ? rcn_stale_local(into, &address, message.rtm_dst_len) : 0;
}

int rcn_locals_parse(struct rcn_stale *stale, const char *data, size_t size, uint32_t sequence)
{
    return rcn_walk(data, size, sequence, read_local, stale);
}
