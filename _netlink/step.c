/* One step of a job as netlink messages: links, addresses, routes, rules, neighbours. */
#include "step.h"

#include <errno.h>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sys/socket.h>

#ifndef IFA_PROTO
#define IFA_PROTO 11
#endif
#define GEN_MODE_NONE 1

static size_t address_size(const struct rcn_step *step)
{
    return step->family == AF_INET6 ? 16 : 4;
}

static void put_gen_mode(struct rcn_buffer *buffer, uint8_t mode)
{
    struct rtattr *spec = rcn_nest(buffer, IFLA_AF_SPEC);
    struct rtattr *inet6 = rcn_nest(buffer, AF_INET6);

    rcn_put_u8(buffer, IFLA_INET6_ADDR_GEN_MODE, mode);
    rcn_nest_end(buffer, inet6);
    rcn_nest_end(buffer, spec);
}

static void put_port(struct rcn_buffer *buffer, uint8_t port)
{
    struct rtattr *info = rcn_nest(buffer, IFLA_LINKINFO);

    rcn_put_text(buffer, IFLA_INFO_SLAVE_KIND, "bridge");
    struct rtattr *data = rcn_nest(buffer, IFLA_INFO_SLAVE_DATA);
    rcn_put_u8(buffer, IFLA_BRPORT_ISOLATED, !!(port & RCN_PORT_ISOLATED));
    rcn_put_u8(buffer, IFLA_BRPORT_MODE, !!(port & RCN_PORT_HAIRPIN));
    rcn_put_u8(buffer, IFLA_BRPORT_LOCKED, !!(port & RCN_PORT_LOCKED));
    rcn_put_u8(buffer, IFLA_BRPORT_LEARNING, !(port & RCN_PORT_LOCKED));
    rcn_nest_end(buffer, data);
    rcn_nest_end(buffer, info);
}

static void put_flush(struct rcn_buffer *buffer)
{
    struct rtattr *info = rcn_nest(buffer, IFLA_LINKINFO);

    rcn_put_text(buffer, IFLA_INFO_SLAVE_KIND, "bridge");
    struct rtattr *data = rcn_nest(buffer, IFLA_INFO_SLAVE_DATA);
    rcn_put(buffer, IFLA_BRPORT_FLUSH, NULL, 0);
    rcn_nest_end(buffer, data);
    rcn_nest_end(buffer, info);
}

static struct ifinfomsg *begin_link(struct rcn_buffer *buffer, uint16_t type, uint16_t flags,
                                    int index)
{
    struct ifinfomsg *link = rcn_begin(buffer, type, flags, sizeof *link);

    if (link)
        link->ifi_index = index;
    return link;
}

/* One queue each way: each queue is a sysfs object and a uevent, and shrinking to the number in use
 * waits for an RCU grace period. */
static void put_end(struct rcn_buffer *buffer, const char *name, const uint8_t mac[6], uint32_t mtu)
{
    rcn_put_text(buffer, IFLA_IFNAME, name);
    rcn_put(buffer, IFLA_ADDRESS, mac, 6);
    rcn_put_u32(buffer, IFLA_MTU, mtu);
    rcn_put_u32(buffer, IFLA_NUM_TX_QUEUES, 1);
    rcn_put_u32(buffer, IFLA_NUM_RX_QUEUES, 1);
}

/* An entry of the bridge's table. `sticky`: it stays there also where that MAC is heard behind
 * another port, and tells our entries from an administrator's. */
static void fdb_entry(struct rcn_buffer *buffer, const uint8_t mac[6], int port, bool remove)
{
    uint16_t type = remove ? RTM_DELNEIGH : RTM_NEWNEIGH;
    uint16_t flags = remove ? 0 : NLM_F_CREATE | NLM_F_REPLACE;
    struct ndmsg *message = rcn_begin(buffer, type, flags, sizeof *message);

    if (message) {
        message->ndm_family = AF_BRIDGE;
        message->ndm_ifindex = port;
        message->ndm_state = NUD_NOARP;
        message->ndm_flags = NTF_MASTER | NTF_STICKY;
    }
    rcn_put(buffer, NDA_LLADDR, mac, 6);
}

/* The pair, and in a second message what a creating message takes no notice of: the alias
 * (ignored) and the address generation mode (EAFNOSUPPORT); in a third one what stands behind a
 * locked port. All go out in one datagram, so that no kill falls between them; those behind the
 * first name the link by its number, which nobody else can have. */
static int veth(struct rcn_buffer *buffer, const struct rcn_step *step, int netns)
{
    struct ifinfomsg *link =
        begin_link(buffer, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, step->index);

    if (link) {
        link->ifi_flags = IFF_UP;
        link->ifi_change = IFF_UP;
    }
    put_end(buffer, step->link, step->mac, step->mtu);
    if (step->other)
        rcn_put_u32(buffer, IFLA_MASTER, (uint32_t)step->other);
    if (step->table)
        rcn_put_u32(buffer, IFLA_GROUP, step->table);
    struct rtattr *info = rcn_nest(buffer, IFLA_LINKINFO);
    rcn_put_text(buffer, IFLA_INFO_KIND, "veth");
    struct rtattr *data = rcn_nest(buffer, IFLA_INFO_DATA);
    struct rtattr *peer = rcn_nest(buffer, VETH_INFO_PEER);
    /* The peer cannot come up here: veth_open() wants its own peer linked first (ENOTCONN). */
    struct ifinfomsg *inner = rcn_reserve(buffer, sizeof *inner);
    if (inner)
        inner->ifi_index = (int)step->priority;
    put_end(buffer, step->name, step->peer_mac, step->mtu);
    rcn_put_u32(buffer, IFLA_NET_NS_FD, (uint32_t)netns);
    rcn_nest_end(buffer, peer);
    rcn_nest_end(buffer, data);
    rcn_nest_end(buffer, info);

    begin_link(buffer, RTM_NEWLINK, 0, step->index);
    if (step->text[0])
        rcn_put_text(buffer, IFLA_IFALIAS, step->text);
    if (step->gen_mode)
        put_gen_mode(buffer, GEN_MODE_NONE);
    if (step->port)
        put_port(buffer, step->port);
    if (!(step->port & RCN_PORT_LOCKED))
        return 2;
    fdb_entry(buffer, step->peer_mac, step->index, false);
    return 3;
}

static void put_snooping(struct rcn_buffer *buffer, bool on)
{
    struct rtattr *info = rcn_nest(buffer, IFLA_LINKINFO);

    rcn_put_text(buffer, IFLA_INFO_KIND, "bridge");
    struct rtattr *data = rcn_nest(buffer, IFLA_INFO_DATA);
    rcn_put_u8(buffer, IFLA_BR_MCAST_SNOOPING, on);
    rcn_nest_end(buffer, data);
    rcn_nest_end(buffer, info);
}

/* Without snooping: it would set the timers of all ports anew with each one that comes up. */
static int bridge(struct rcn_buffer *buffer, const struct rcn_step *step)
{
    begin_link(buffer, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, step->index);
    rcn_put_text(buffer, IFLA_IFNAME, step->link);
    rcn_put(buffer, IFLA_ADDRESS, step->mac, 6);
    put_snooping(buffer, false);
    return 1;
}

static int set_link(struct rcn_buffer *buffer, const struct rcn_step *step, int index)
{
    struct ifinfomsg *link = begin_link(buffer, RTM_NEWLINK, 0, index);

    if (link && step->set & (RCN_SET_UP | RCN_SET_DOWN)) {
        link->ifi_change = IFF_UP;
        link->ifi_flags = step->set & RCN_SET_UP ? IFF_UP : 0;
    }
    if (step->set & RCN_SET_NAME)
        rcn_put_text(buffer, IFLA_IFNAME, step->name);
    if (step->set & RCN_SET_MAC)
        rcn_put(buffer, IFLA_ADDRESS, step->mac, 6);
    if (step->set & RCN_SET_MTU)
        rcn_put_u32(buffer, IFLA_MTU, step->mtu);
    if (step->set & RCN_SET_MASTER)
        rcn_put_u32(buffer, IFLA_MASTER, (uint32_t)step->other);
    if (step->set & RCN_SET_GROUP)
        rcn_put_u32(buffer, IFLA_GROUP, step->table);
    if (step->set & RCN_SET_ALIAS)
        rcn_put_text(buffer, IFLA_IFALIAS, step->text);
    if (step->set & RCN_SET_GEN_MODE)
        put_gen_mode(buffer, step->gen_mode);
    if (step->set & RCN_SET_PORT)
        put_port(buffer, step->port);
    if (step->set & RCN_SET_FLUSH)
        put_flush(buffer);
    if (step->set & RCN_SET_SNOOP)
        put_snooping(buffer, true);
    return 1;
}

static int address(struct rcn_buffer *buffer, const struct rcn_step *step, int index)
{
    uint16_t type = step->remove ? RTM_DELADDR : RTM_NEWADDR;
    uint16_t flags = step->remove ? 0 : NLM_F_CREATE | NLM_F_REPLACE;
    struct ifaddrmsg *message = rcn_begin(buffer, type, flags, sizeof *message);

    if (message) {
        message->ifa_family = step->family;
        message->ifa_prefixlen = step->prefix;
        message->ifa_index = (uint32_t)index;
        message->ifa_scope = step->scope;
        if (step->family == AF_INET6)
            message->ifa_flags = IFA_F_NODAD;
    }
    rcn_put(buffer, IFA_LOCAL, step->address, address_size(step));
    rcn_put(buffer, IFA_ADDRESS, step->address, address_size(step));
    if (step->remove)
        return 1;
    rcn_put_u8(buffer, IFA_PROTO, RCN_PROTOCOL);
    if (step->family == AF_INET && step->prefix < 31) {
        uint8_t broadcast[4];
        for (unsigned i = 0; i < 4; i++) {
            unsigned first = i * 8;
            unsigned kept = step->prefix <= first ? 0 : step->prefix - first;
            broadcast[i] = (uint8_t)(step->address[i] | (kept >= 8 ? 0 : 0xFFU >> kept));
        }
        rcn_put(buffer, IFA_BROADCAST, broadcast, sizeof broadcast);
    }
    return 1;
}

static int route(struct rcn_buffer *buffer, const struct rcn_step *step, int index)
{
    uint16_t type = step->remove ? RTM_DELROUTE : RTM_NEWROUTE;
    uint16_t flags = step->remove ? 0 : NLM_F_CREATE;

    /* The kernel's own stand beside each other, as fe80::/64 does for each link: one must not take
     * the place of another. */
    if (!step->remove && !step->protocol)
        flags |= NLM_F_REPLACE;
    struct rtmsg *message = rcn_begin(buffer, type, flags, sizeof *message);

    if (message) {
        message->rtm_family = step->family;
        message->rtm_dst_len = step->prefix;
        message->rtm_table = step->table < 256 ? (uint8_t)step->table : RT_TABLE_UNSPEC;
        message->rtm_protocol = step->protocol ? step->protocol : RCN_PROTOCOL;
        message->rtm_scope = step->scope;
        message->rtm_type = RTN_UNICAST;
    }
    if (step->prefix)
        rcn_put(buffer, RTA_DST, step->address, address_size(step));
    if (step->has_via)
        rcn_put(buffer, RTA_GATEWAY, step->via, address_size(step));
    if (step->has_source)
        rcn_put(buffer, RTA_PREFSRC, step->source, address_size(step));
    if (index)
        rcn_put_u32(buffer, RTA_OIF, (uint32_t)index);
    if (step->priority)
        rcn_put_u32(buffer, RTA_PRIORITY, step->priority);
    rcn_put_u32(buffer, RTA_TABLE, step->table);
    return 1;
}

static int rule(struct rcn_buffer *buffer, const struct rcn_step *step)
{
    uint16_t type = step->remove ? RTM_DELRULE : RTM_NEWRULE;
    uint16_t flags = step->remove ? 0 : NLM_F_CREATE | NLM_F_EXCL;
    struct fib_rule_hdr *message = rcn_begin(buffer, type, flags, sizeof *message);

    if (message) {
        message->family = step->family;
        message->src_len = step->prefix;
        message->table = step->table < 256 ? (uint8_t)step->table : RT_TABLE_UNSPEC;
        message->action = FR_ACT_TO_TBL;
    }
    rcn_put(buffer, FRA_SRC, step->address, address_size(step));
    rcn_put_u32(buffer, FRA_TABLE, step->table);
    rcn_put_u32(buffer, FRA_PRIORITY, step->priority);
    rcn_put_u8(buffer, FRA_PROTOCOL, RCN_PROTOCOL);
    return 1;
}

static int neighbour(struct rcn_buffer *buffer, const struct rcn_step *step, int index)
{
    if (step->family == AF_BRIDGE) {
        fdb_entry(buffer, step->mac, index, step->remove);
        return 1;
    }
    uint16_t type = step->remove ? RTM_DELNEIGH : RTM_NEWNEIGH;
    uint16_t flags = step->remove ? 0 : NLM_F_CREATE | NLM_F_REPLACE;
    struct ndmsg *message = rcn_begin(buffer, type, flags, sizeof *message);

    if (message) {
        message->ndm_family = step->family;
        message->ndm_ifindex = index;
        message->ndm_state = NUD_PERMANENT;
    }
    rcn_put(buffer, NDA_DST, step->address, address_size(step));
    rcn_put(buffer, NDA_LLADDR, step->mac, 6);
    rcn_put_u8(buffer, NDA_PROTOCOL, RCN_PROTOCOL);
    return 1;
}

int rcn_step_messages(struct rcn_buffer *buffer, const struct rcn_step *step, int index, int netns)
{
    switch (step->kind) {
    case RCN_VETH:
        return veth(buffer, step, netns);
    case RCN_BRIDGE:
        return bridge(buffer, step);
    case RCN_LINK:
        return set_link(buffer, step, index);
    case RCN_DELETE_LINK:
        begin_link(buffer, RTM_DELLINK, 0, index);
        return 1;
    case RCN_ADDRESS:
        return address(buffer, step, index);
    case RCN_ROUTE:
        return route(buffer, step, index);
    case RCN_RULE:
        return rule(buffer, step);
    case RCN_NEIGHBOUR:
        return neighbour(buffer, step, index);
    default:
        return -EINVAL;
    }
}
