/* Notifications: what the kernel says about links, addresses, routes, rules, neighbours and netconf
 * of the caller's namespace and of every namespace that has an id in it. They say where to look,
 * never what is. */
#define _GNU_SOURCE
#include "rtnl_api.h"
#include "socket.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/net_namespace.h>
#include <linux/netconf.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef NETLINK_LISTEN_ALL_NSID
#define NETLINK_LISTEN_ALL_NSID 8
#endif
#define RECEIVE 32768
#define EVERY_LINK (-1) /* NETCONFA_IFINDEX_ALL */

static const int groups[] = {
    RTNLGRP_LINK,         RTNLGRP_NEIGH,        RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV4_RULE,    RTNLGRP_IPV6_IFADDR,  RTNLGRP_IPV6_ROUTE,  RTNLGRP_IPV6_RULE,
    RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF, RTNLGRP_NSID,
};

int rcn_events_open(uint32_t room)
{
    int on = 1;
    int size = (int)room;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);

    if (fd < 0)
        return -errno;
    struct sockaddr_nl own = {.nl_family = AF_NETLINK};
    int error = bind(fd, (struct sockaddr *)&own, sizeof own) ? -errno : 0;
    /* Without CAP_NET_BROADCAST the host alone is heard: that is for the caller to know. */
    if (!error && setsockopt(fd, SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, &on, sizeof on))
        error = -errno;
    if (!error && setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size))
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    for (size_t i = 0; !error && i < sizeof groups / sizeof *groups; i++)
        if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &groups[i], sizeof groups[i]) &&
            errno != EINVAL) /* a kernel without that group */
            error = -errno;
    if (error) {
        close(fd);
        return error;
    }
    return fd;
}

static void attributes(struct rcn_attributes *all, const char *data, size_t size, size_t header)
{
    size_t skip = NLMSG_ALIGN(header);

    all->at = data + (skip < size ? skip : size);
    all->left = skip < size ? size - skip : 0;
}

static bool read_link(struct rcn_event *event, const char *data, size_t size)
{
    struct ifinfomsg message;
    struct rcn_attributes all;
    struct rcn_attribute one;

    if (size < sizeof message)
        return false;
    memcpy(&message, data, sizeof message);
    event->index = message.ifi_index;
    event->family = message.ifi_family;
    attributes(&all, data, size, sizeof message);
    while (rcn_next(&all, &one))
        if (one.type == IFLA_IFNAME)
            rcn_copy(event->name, sizeof event->name - 1, &one);
    return true;
}

static bool read_address(struct rcn_event *event, const char *data, size_t size)
{
    struct ifaddrmsg message;

    if (size < sizeof message)
        return false;
    memcpy(&message, data, sizeof message);
    event->index = (int32_t)message.ifa_index;
    event->family = message.ifa_family;
    return true;
}

/* Of routes only those that somebody has set: the kernel keeps its local table by itself. */
static bool read_route(struct rcn_event *event, const char *data, size_t size)
{
    struct rtmsg message;
    struct rcn_attributes all;
    struct rcn_attribute one;

    if (size < sizeof message)
        return false;
    memcpy(&message, data, sizeof message);
    if (message.rtm_table == RT_TABLE_LOCAL || message.rtm_type == RTN_MULTICAST ||
        message.rtm_flags & RTM_F_CLONED)
        return false;
    event->family = message.rtm_family;
    event->prefix = message.rtm_dst_len;
    attributes(&all, data, size, sizeof message);
    while (rcn_next(&all, &one)) {
        if (one.type == RTA_OIF)
            event->index = (int32_t)rcn_u32(&one);
        else if (one.type == RTA_DST)
            rcn_copy(event->address, sizeof event->address, &one);
    }
    return true;
}

static bool read_rule(struct rcn_event *event, const char *data, size_t size)
{
    struct fib_rule_hdr message;

    if (size < sizeof message)
        return false;
    memcpy(&message, data, sizeof message);
    event->family = message.family;
    return true;
}

/* Neighbours come and go with traffic: only ours count, and what takes their place; of bridges'
 * tables, likewise, only what is told to them as we do. */
static bool read_neighbour(struct rcn_event *event, const char *data, size_t size)
{
    struct ndmsg message;
    struct rcn_attributes all;
    struct rcn_attribute one;
    uint8_t protocol = 0;

    if (size < sizeof message)
        return false;
    memcpy(&message, data, sizeof message);
    if (message.ndm_family == AF_BRIDGE) {
        event->index = message.ndm_ifindex;
        event->family = message.ndm_family;
        attributes(&all, data, size, sizeof message);
        while (rcn_next(&all, &one))
            if (one.type == NDA_LLADDR && one.size == 6)
                rcn_copy(event->address, sizeof event->address, &one);
        return message.ndm_state == NUD_NOARP && message.ndm_flags & NTF_STICKY;
    }
    if (message.ndm_family != AF_INET && message.ndm_family != AF_INET6)
        return false;
    event->index = message.ndm_ifindex;
    event->family = message.ndm_family;
    attributes(&all, data, size, sizeof message);
    while (rcn_next(&all, &one)) {
        if (one.type == NDA_DST)
            rcn_copy(event->address, sizeof event->address, &one);
        else if (one.type == NDA_PROTOCOL)
            protocol = rcn_u8(&one);
    }
    return protocol == RCN_PROTOCOL || message.ndm_state & NUD_PERMANENT;
}

static bool read_netconf(struct rcn_event *event, const char *data, size_t size)
{
    struct rcn_attributes all;
    struct rcn_attribute one;

    if (size < sizeof(struct netconfmsg))
        return false;
    event->family = (uint8_t)data[0];
    attributes(&all, data, size, sizeof(struct netconfmsg));
    while (rcn_next(&all, &one))
        if (one.type == NETCONFA_IFINDEX)
            event->index = (int32_t)rcn_u32(&one);
    return event->index == EVERY_LINK;
}

static bool read_nsid(struct rcn_event *event, const char *data, size_t size)
{
    struct rcn_attributes all;
    struct rcn_attribute one;

    attributes(&all, data, size, sizeof(struct rtgenmsg));
    while (rcn_next(&all, &one))
        if (one.type == NETNSA_NSID)
            event->index = (int32_t)rcn_u32(&one);
    return true;
}

static bool read_one(struct rcn_event *event, const char *data, size_t size)
{
    switch (event->type) {
    case RTM_NEWLINK:
    case RTM_DELLINK:
        return read_link(event, data, size);
    case RTM_NEWADDR:
    case RTM_DELADDR:
        return read_address(event, data, size);
    case RTM_NEWROUTE:
    case RTM_DELROUTE:
        return read_route(event, data, size);
    case RTM_NEWRULE:
    case RTM_DELRULE:
        return read_rule(event, data, size);
    case RTM_NEWNEIGH:
    case RTM_DELNEIGH:
        return read_neighbour(event, data, size);
    case RTM_NEWNETCONF:
    case RTM_DELNETCONF:
        return read_netconf(event, data, size);
    case RTM_NEWNSID:
    case RTM_DELNSID:
        return read_nsid(event, data, size);
    default:
        return false;
    }
}

uint32_t rcn_events_parse(const char *data, size_t size, int32_t nsid, struct rcn_event *events,
                          uint32_t room)
{
    uint32_t count = 0;

    while (size >= NLMSG_HDRLEN && count < room) {
        struct nlmsghdr header;
        memcpy(&header, data, sizeof header);
        if (header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > size)
            break;
        struct rcn_event *event = &events[count];
        memset(event, 0, sizeof *event);
        event->nsid = nsid;
        event->type = header.nlmsg_type;
        if (read_one(event, data + NLMSG_HDRLEN, header.nlmsg_len - NLMSG_HDRLEN) &&
            /* A change is often told several times over. */
            (!count || memcmp(event, event - 1, sizeof *event)))
            count++;
        size_t step = NLMSG_ALIGN(header.nlmsg_len);
        if (step > size)
            step = size;
        data += step;
        size -= step;
    }
    return count;
}

static int32_t nsid_of(struct msghdr *message)
{
    for (struct cmsghdr *one = CMSG_FIRSTHDR(message); one; one = CMSG_NXTHDR(message, one))
        if (one->cmsg_level == SOL_NETLINK && one->cmsg_type == NETLINK_LISTEN_ALL_NSID) {
            int32_t nsid;
            memcpy(&nsid, CMSG_DATA(one), sizeof nsid);
            return nsid;
        }
    return -1;
}

int rcn_events_read(int fd, struct rcn_event *events, uint32_t room, uint32_t *count,
                    uint32_t *lost)
{
    _Alignas(NLMSG_ALIGNTO) char data[RECEIVE];
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int)) * 4];

    *count = *lost = 0;
    /* A datagram of the kernel's holds few messages; this many can always be taken. */
    while (room - *count >= RECEIVE / NLMSG_HDRLEN) {
        struct iovec part = {data, sizeof data};
        struct sockaddr_nl from;
        struct msghdr message = {.msg_name = &from,
                                 .msg_namelen = sizeof from,
                                 .msg_iov = &part,
                                 .msg_iovlen = 1,
                                 .msg_control = control,
                                 .msg_controllen = sizeof control};
        ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            if (errno == EAGAIN)
                return 0;
            if (errno != ENOBUFS)
                return -errno;
            *lost = 1;
            continue;
        }
        if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
            *lost = 1;
        if (from.nl_pid) /* only the kernel is believed */
            continue;
        *count +=
            rcn_events_parse(data, (size_t)got, nsid_of(&message), events + *count, room - *count);
    }
    return 0;
}

/* Ask one question about the namespace behind `netns`; the answer's id, or -errno. */
static int ask_nsid(int fd, int netns, uint16_t type, int32_t nsid)
{
    struct {
        struct nlmsghdr header;
        struct rtgenmsg body;
        char pad[3];
        struct rtattr fd_attribute;
        uint32_t fd;
        struct rtattr id_attribute;
        int32_t id;
    } request;
    char reply[512];
    struct rcn_event event;

    memset(&request, 0, sizeof request);
    request.header.nlmsg_type = type;
    request.header.nlmsg_flags = NLM_F_REQUEST | (type == RTM_NEWNSID ? NLM_F_ACK : 0);
    request.header.nlmsg_len = sizeof request;
    request.fd_attribute.rta_type = NETNSA_FD;
    request.fd_attribute.rta_len = RTA_LENGTH(sizeof request.fd);
    request.fd = (uint32_t)netns;
    request.id_attribute.rta_type = NETNSA_NSID;
    request.id_attribute.rta_len = RTA_LENGTH(sizeof request.id);
    request.id = nsid;
    if (type == RTM_GETNSID) /* the question names the namespace alone */
        request.header.nlmsg_len -= RTA_LENGTH(sizeof request.id);
    if (send(fd, &request, request.header.nlmsg_len, 0) < 0)
        return -errno;
    ssize_t got = recv(fd, reply, sizeof reply, 0);
    if (got < 0)
        return -errno;
    struct nlmsghdr header;
    if ((size_t)got < sizeof header)
        return -EBADMSG;
    memcpy(&header, reply, sizeof header);
    if (header.nlmsg_type == NLMSG_ERROR) {
        int error = -EBADMSG;
        if ((size_t)got >= NLMSG_HDRLEN + sizeof error)
            memcpy(&error, reply + NLMSG_HDRLEN, sizeof error);
        return error;
    }
    memset(&event, 0, sizeof event);
    (void)read_nsid(&event, reply + NLMSG_HDRLEN, (size_t)got - NLMSG_HDRLEN);
    return event.index;
}

static int nsid_at(const char *path, bool give)
{
    int netns = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (netns < 0)
        return -errno;
    int fd = rcn_socket_open();
    int found = fd;
    if (fd >= 0) {
        found = ask_nsid(fd, netns, RTM_GETNSID, 0);
        if (found == -1 && give) { /* NETNSA_NSID_NOT_ASSIGNED; -EPERM is not among its answers */
            int error = ask_nsid(fd, netns, RTM_NEWNSID, -1);
            found = error && error != -EEXIST ? error : ask_nsid(fd, netns, RTM_GETNSID, 0);
        }
        close(fd);
    }
    close(netns);
    return found;
}

int rcn_nsid(const char *path)
{
    return nsid_at(path, true);
}

int rcn_nsid_of(const char *path)
{
    return nsid_at(path, false);
}
