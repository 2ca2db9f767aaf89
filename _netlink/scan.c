/* Dumps: links, addresses, routes and rules of the caller's namespace and of any number of others.
 */
#define _GNU_SOURCE
#include "rtnl_api.h"
#include "socket.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <net/if_arp.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef IFA_PROTO
#define IFA_PROTO 11
#endif
#define SKIP_STATS (1 << 3) /* RTEXT_FILTER_SKIP_STATS: half of a link's message */
#define RECEIVE (256 * 1024)
#define TORN_TRIES 50

enum { LINKS, ADDRESSES, ROUTES, RULES, HEAP };

/* Room for `size` bytes at the end of a row array, or NULL. */
static void *grow(struct rcn_scan *scan, int which, size_t size)
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
    }
}

static void read_info(struct rcn_link *link, struct rcn_attributes all)
{
    struct rcn_attribute one, inner;
    bool port = false;

    while (rcn_next(&all, &one)) {
        if (one.type == IFLA_INFO_KIND)
            rcn_copy(link->kind, sizeof link->kind - 1, &one);
        else if (one.type == IFLA_INFO_SLAVE_KIND)
            port = one.size >= 6 && !memcmp(one.data, "bridge", 6);
        else if (one.type == IFLA_INFO_SLAVE_DATA && port) {
            struct rcn_attributes data = rcn_inside(&one);
            while (rcn_next(&data, &inner))
                if (inner.type == IFLA_BRPORT_ISOLATED)
                    link->isolated = rcn_u8(&inner);
        }
    }
}

static int read_link(struct rcn_scan *scan, struct rcn_space *space, const char *data, size_t size)
{
    struct ifinfomsg message;
    struct rcn_attribute one;

    if (size < sizeof message)
        return -EBADMSG;
    memcpy(&message, data, sizeof message);
    struct rcn_link *link = grow(scan, LINKS, sizeof *link);
    if (!link)
        return -ENOMEM;
    space->n_links++;
    link->index = message.ifi_index;
    link->flags = message.ifi_flags;
    link->peer_nsid = -1;
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
            char *text = grow(scan, HEAP, one.size);
            if (one.size && !text)
                return -ENOMEM;
            memcpy(text, one.data, one.size);
            link->alias = (uint32_t)(scan->used[HEAP] - one.size);
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
    struct rcn_address *row = grow(scan, ADDRESSES, sizeof *row);
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
    struct rcn_route *row = grow(scan, ROUTES, sizeof *row);
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
    struct rcn_rule *row = grow(scan, RULES, sizeof *row);
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

int rcn_scan_parse(struct rcn_scan *scan, struct rcn_space *space, const char *data, size_t size,
                   uint32_t sequence)
{
    int error = 0;

    while (size >= NLMSG_HDRLEN) {
        struct nlmsghdr header;
        memcpy(&header, data, sizeof header);
        if (header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > size)
            return -EBADMSG;
        const char *body = data + NLMSG_HDRLEN;
        size_t length = header.nlmsg_len - NLMSG_HDRLEN;
        if (header.nlmsg_seq == sequence) {
            /* A dump that was interrupted is torn: nothing may be concluded from it. */
            if (header.nlmsg_flags & NLM_F_DUMP_INTR)
                return -EINTR;
            if (header.nlmsg_type == NLMSG_DONE) {
                if (length >= sizeof error)
                    memcpy(&error, body, sizeof error);
                return error < 0 ? error : 1;
            }
            if (header.nlmsg_type == NLMSG_ERROR) {
                if (length < sizeof error)
                    return -EBADMSG;
                memcpy(&error, body, sizeof error);
                return error < 0 ? error : -EBADMSG;
            }
            if (header.nlmsg_type == RTM_NEWLINK)
                error = read_link(scan, space, body, length);
            else if (header.nlmsg_type == RTM_NEWADDR)
                error = read_address(scan, space, body, length);
            else if (header.nlmsg_type == RTM_NEWROUTE)
                error = read_route(scan, space, body, length);
            else if (header.nlmsg_type == RTM_NEWRULE)
                error = read_rule(scan, space, body, length);
            if (error)
                return error;
        }
        size_t step = NLMSG_ALIGN(header.nlmsg_len);
        if (step > size)
            step = size;
        data += step;
        size -= step;
    }
    return 0;
}

static int ask(int fd, uint16_t type, uint32_t sequence)
{
    struct {
        struct nlmsghdr header;
        union {
            struct ifinfomsg link;
            struct ifaddrmsg address;
            struct rtmsg route;
            struct fib_rule_hdr rule;
            char room[32];
        } body;
    } request;
    size_t size = sizeof(struct rtmsg);

    memset(&request, 0, sizeof request);
    if (type == RTM_GETLINK) {
        struct rtattr mask = {RTA_LENGTH(4), IFLA_EXT_MASK};
        uint32_t value = SKIP_STATS;
        size = sizeof(struct ifinfomsg);
        memcpy(request.body.room + size, &mask, sizeof mask);
        memcpy(request.body.room + size + sizeof mask, &value, sizeof value);
        size += sizeof mask + sizeof value;
    } else if (type == RTM_GETADDR) {
        size = sizeof(struct ifaddrmsg);
    } else if (type == RTM_GETRULE) {
        size = sizeof(struct fib_rule_hdr);
    }
    request.header.nlmsg_len = (uint32_t)NLMSG_LENGTH(size);
    request.header.nlmsg_type = type;
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.header.nlmsg_seq = sequence;
    return send(fd, &request, request.header.nlmsg_len, 0) < 0 ? -errno : 0;
}

static int dump_once(struct rcn_scan *scan, struct rcn_space *space, int fd, uint16_t type,
                     uint32_t sequence, char *buffer)
{
    int done = ask(fd, type, sequence);

    while (!done) {
        ssize_t got = recv(fd, buffer, RECEIVE, 0);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        done = rcn_scan_parse(scan, space, buffer, (size_t)got, sequence);
    }
    return done < 0 ? done : 0;
}

/* What is left of a torn dump must not be taken for the answer to the next question: it carries an
 * old sequence number, and is passed over by that. */
static int dump(struct rcn_scan *scan, struct rcn_space *space, int fd, uint16_t type,
                uint32_t *sequence, char *buffer)
{
    struct rcn_space before = *space;
    size_t used[5];
    int error = 0;

    memcpy(used, scan->used, sizeof used);
    for (int i = 0; i < TORN_TRIES; i++) {
        error = dump_once(scan, space, fd, type, ++*sequence, buffer);
        if (error != -EINTR && error != -EBUSY)
            return error;
        *space = before;
        memcpy(scan->used, used, sizeof used);
        /* The rest of the torn answer is still to come, and the kernel refuses a second dump
         * before. */
        while (recv(fd, buffer, RECEIVE, MSG_DONTWAIT) > 0)
            ;
    }
    return error;
}

static int read_sysctls(struct rcn_scan *scan, struct rcn_space *space, struct rcn_procfs *proc,
                        const char *const *names, uint32_t n_names)
{
    space->sysctls = (uint32_t)scan->used[HEAP];
    for (uint32_t i = 0; i < n_names; i++) {
        char value[1024];
        int fd = rcn_sysctl_open(proc, names[i], O_RDONLY);
        ssize_t size = fd < 0 ? -1 : read(fd, value, sizeof value);
        if (fd >= 0)
            close(fd);
        if (size < 0)
            size = 0;
        char *text = grow(scan, HEAP, (size_t)size + 2);
        if (!text)
            return -ENOMEM;
        text[0] = fd < 0 ? '-' : '+';
        memcpy(text + 1, value, (size_t)size);
    }
    return 0;
}

struct scanning {
    const char *const *paths;
    uint32_t n_paths;
    const char *const *sysctls;
    uint32_t n_sysctls;
    struct rcn_scan *scan;
    int error;
};

static int scan_space(const struct scanning *all, struct rcn_space *space, const char *path,
                      struct rcn_procfs *proc, char *buffer)
{
    static const uint16_t types[] = {RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETRULE};
    uint32_t sequence = 0;
    struct stat found;
    int error = 0;
    int netns = open(path ? path : "/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (netns < 0)
        return -errno;
    if (fstat(netns, &found) || (path && setns(netns, CLONE_NEWNET)))
        error = -errno;
    close(netns);
    if (error)
        return error;
    space->inode = found.st_ino;
    if (path)
        rcn_procfs_renew(proc);
    int fd = rcn_socket_open();
    if (fd < 0)
        return fd;
    space->cookie = rcn_socket_cookie(fd);
    for (size_t i = 0; !error && i < sizeof types / sizeof *types; i++) {
        error = dump(all->scan, space, fd, types[i], &sequence, buffer);
        if (error == -EOPNOTSUPP) /* a kernel without policy rules */
            error = 0;
    }
    close(fd);
    if (!error && all->n_sysctls)
        error = read_sysctls(all->scan, space, proc, all->sysctls, all->n_sysctls);
    return error;
}

static void *scan_all(void *argument)
{
    struct scanning *all = argument;
    struct rcn_procfs proc = {.fd = -1};
    char *buffer = malloc(RECEIVE);

    if (!buffer) {
        all->error = -ENOMEM;
        return NULL;
    }
    for (uint32_t i = 0; i < all->n_paths; i++) {
        struct rcn_space *space = &all->scan->spaces[i];
        size_t used[5];
        memcpy(used, all->scan->used, sizeof used);
        int error = scan_space(all, space, all->paths[i], &proc, buffer);
        if (error) {
            memset(space, 0, sizeof *space);
            memcpy(all->scan->used, used, sizeof used);
            space->error = -error;
        }
    }
    free(buffer);
    rcn_procfs_close(&proc);
    return NULL;
}

int rcn_scan_run(const char *const *paths, uint32_t n_paths, const char *const *sysctls,
                 uint32_t n_sysctls, struct rcn_scan *scan)
{
    struct scanning all = {paths, n_paths, sysctls, n_sysctls, scan, 0};
    pthread_t id;

    memset(scan, 0, sizeof *scan);
    scan->spaces = calloc(n_paths ? n_paths : 1, sizeof *scan->spaces);
    if (!scan->spaces)
        return -ENOMEM;
    scan->n_spaces = n_paths;
    int error = pthread_create(&id, NULL, scan_all, &all);
    if (error)
        return -error;
    pthread_join(id, NULL);
    return all.error;
}

void rcn_scan_free(struct rcn_scan *scan)
{
    free(scan->spaces);
    for (int i = 0; i < 5; i++)
        free(scan->rows[i]);
    memset(scan, 0, sizeof *scan);
}

uint64_t rcn_cookie(void)
{
    int fd = rcn_socket_open();

    if (fd < 0)
        return 0;
    uint64_t cookie = rcn_socket_cookie(fd);
    close(fd);
    return cookie;
}
