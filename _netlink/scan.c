/* Dumps: links, addresses, routes, rules and neighbours of the caller's namespace and of any number
 * of others. */
#define _GNU_SOURCE
#include "scan.h"
#include "digest.h"
#include "rtnl_api.h"
#include "socket.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define SKIP_STATS (1 << 3) /* RTEXT_FILTER_SKIP_STATS: half of a link's message */
#define RECEIVE (256 * 1024)
#define TORN_TRIES 50
#define FEW_LINKS 32 /* from more on, one dump of all is the cheaper question */

/* What is dumped: a message's type, and the family where it makes a difference (else 0). */
struct table {
    uint16_t type;
    uint8_t family;
};

static const struct table NEIGHBOURS = {RTM_GETNEIGH, AF_UNSPEC};
static const struct table BRIDGED = {RTM_GETNEIGH, AF_BRIDGE};

/* `index`: ask for the rows of that link alone (0: of all). Rules belong to none. */
static int ask(int fd, struct table table, int32_t index, uint32_t sequence)
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
        request.body.neighbour.ndm_family = table.family;
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

static int dump_once(struct rcn_scan *scan, struct rcn_space *space, int fd, struct table table,
                     int32_t index, uint32_t sequence, char *buffer)
{
    int done = ask(fd, table, index, sequence);

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
static int dump(struct rcn_scan *scan, struct rcn_space *space, int fd, struct table table,
                int32_t index, uint32_t *sequence, char *buffer)
{
    struct rcn_space before = *space;
    size_t used[6];
    int error = 0;

    memcpy(used, scan->used, sizeof used);
    for (int i = 0; i < TORN_TRIES; i++) {
        error = dump_once(scan, space, fd, table, index, ++*sequence, buffer);
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
    space->sysctls = (uint32_t)scan->used[RCN_HEAP];
    for (uint32_t i = 0; i < n_names; i++) {
        char value[1024];
        int fd = rcn_sysctl_open(proc, names[i], O_RDONLY);
        ssize_t size = fd < 0 ? -1 : read(fd, value, sizeof value);
        if (fd >= 0)
            close(fd);
        if (size < 0)
            size = 0;
        char *text = rcn_grow(scan, RCN_HEAP, (size_t)size + 2);
        if (!text)
            return -ENOMEM;
        text[0] = fd < 0 ? '-' : '+';
        memcpy(text + 1, value, (size_t)size);
    }
    return 0;
}

/* One question with one answer. */
static int ask_one(struct rcn_scan *scan, struct rcn_space *space, int fd, const void *request,
                   size_t size, uint32_t sequence, char *buffer)
{
    ssize_t got;

    if (send(fd, request, size, 0) < 0)
        return -errno;
    do
        got = recv(fd, buffer, RECEIVE, 0);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    int error = rcn_scan_parse(scan, space, buffer, (size_t)got, sequence);
    return error < 0 ? error : 0;
}

/* The neighbours behind link routes of ours, one question each. What is not there is no error. */
static int read_gateways(struct rcn_scan *scan, struct rcn_space *space, int fd, uint32_t *sequence,
                         char *buffer)
{
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
        request.header.nlmsg_seq = ++*sequence;
        request.neighbour.ndm_family = route.family;
        request.neighbour.ndm_ifindex = route.index;
        request.attribute.rta_type = NDA_DST;
        request.attribute.rta_len = (uint16_t)RTA_LENGTH(width);
        memcpy(request.address, route.to, width);
        int error = ask_one(scan, space, fd, &request, request.header.nlmsg_len, *sequence, buffer);
        if (error && error != -ENOENT && error != -ENODEV)
            return error;
    }
    return 0;
}

/* What the rows of one space say, as a number. Places in the heap are left out. */
static uint64_t digest_of(struct rcn_scan *scan, const struct rcn_space *space,
                          const size_t before[6], const uint8_t *key)
{
    struct rcn_digest all;

    rcn_digest_begin(&all, key);
    rcn_digest_word(&all, space->cookie);
    for (uint32_t i = 0; i < space->n_links; i++) {
        struct rcn_link link;
        struct rcn_digest one;
        char *row = scan->rows[RCN_LINKS] + before[RCN_LINKS] + i * sizeof link;
        memcpy(&link, row, sizeof link);
        rcn_digest_begin(&one, key);
        if (link.alias_size)
            rcn_digest_bytes(&one, scan->rows[RCN_HEAP] + link.alias, link.alias_size);
        link.alias = 0;
        rcn_digest_bytes(&one, (const char *)&link, sizeof link);
        link.digest = rcn_digest_end(&one);
        rcn_digest_word(&all, link.digest);
        memcpy(row + offsetof(struct rcn_link, digest), &link.digest, sizeof link.digest);
    }
    for (int which = RCN_ADDRESSES; which <= RCN_HEAP; which++) {
        size_t size = scan->used[which] - before[which];
        if (size)
            rcn_digest_bytes(&all, scan->rows[which] + before[which], size);
        else
            rcn_digest_word(&all, 0);
    }
    return rcn_digest_end(&all);
}

/* Single links by number instead of a dump of all: a host has thousands. */
static int read_links(struct rcn_scan *scan, struct rcn_space *space, int fd, const int32_t *links,
                      uint32_t n_links, uint32_t *sequence, char *buffer)
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
        request.header.nlmsg_seq = ++*sequence;
        request.link.ifi_index = links[i];
        request.attribute.rta_type = IFLA_EXT_MASK;
        request.attribute.rta_len = RTA_LENGTH(sizeof request.mask);
        request.mask = SKIP_STATS;
        int error = ask_one(scan, space, fd, &request, sizeof request, *sequence, buffer);
        if (error && error != -ENODEV)
            return error;
    }
    return 0;
}

/* The rows of few links, one question a link; a link that is not there has none. */
static int dump_links(struct rcn_scan *scan, struct rcn_space *space, int fd, struct table table,
                      const int32_t *links, uint32_t n_links, uint32_t *sequence, char *buffer)
{
    int error = 0;

    for (uint32_t i = 0; i < n_links && !error; i++) {
        error = dump(scan, space, fd, table, links[i], sequence, buffer);
        if (error == -ENODEV)
            error = 0;
    }
    return error;
}

struct scanning {
    const char *const *paths;
    uint32_t n_paths;
    const char *const *sysctls;
    uint32_t n_sysctls;
    uint32_t what;
    const int32_t *links;
    uint32_t n_links;
    const uint8_t *key;
    struct rcn_scan *scan;
    int error;
};

/* The caller's own: permanent neighbours, and what bridges are told where any of the links is a
 * port. (A port's entries are found by a walk through its bridge's whole table.) */
static int read_neighbours(const struct scanning *all, struct rcn_space *space, int fd, bool few,
                           uint32_t *sequence, char *buffer)
{
    size_t size = sizeof(struct rcn_link);
    size_t first = all->scan->used[RCN_LINKS] - space->n_links * size;
    bool ports = false;

    for (uint32_t i = 0; i < space->n_links && !ports; i++) {
        struct rcn_link link;
        memcpy(&link, all->scan->rows[RCN_LINKS] + first + i * size, sizeof link);
        ports = link.master != 0;
    }
    int error = few ? dump_links(all->scan, space, fd, NEIGHBOURS, all->links, all->n_links,
                                 sequence, buffer)
                    : dump(all->scan, space, fd, NEIGHBOURS, 0, sequence, buffer);
    if (error || !ports)
        return error;
    return few ? dump_links(all->scan, space, fd, BRIDGED, all->links, all->n_links, sequence,
                            buffer)
               : dump(all->scan, space, fd, BRIDGED, 0, sequence, buffer);
}

static int scan_space(const struct scanning *all, struct rcn_space *space, const char *path,
                      struct rcn_procfs *proc, char *buffer)
{
    static const struct table tables[] = {
        {RTM_GETLINK, 0}, {RTM_GETADDR, 0}, {RTM_GETROUTE, 0}, {RTM_GETRULE, 0}};
    uint32_t sequence = 0;
    struct stat found;
    int error = 0;
    bool fresh = path && !*path;
    bool own = !path || fresh;
    bool few = own && all->n_links && all->n_links <= FEW_LINKS;

    if (fresh && unshare(CLONE_NEWNET))
        return -errno;
    int netns = open(own ? "/proc/thread-self/ns/net" : path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (netns < 0)
        return -errno;
    if (fstat(netns, &found) || (!own && setns(netns, CLONE_NEWNET)))
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
    for (size_t i = 0; !error && i < sizeof tables / sizeof *tables; i++) {
        if (!(all->what & 1U << i))
            continue;
        if (own && tables[i].type == RTM_GETLINK && all->n_links)
            error = read_links(all->scan, space, fd, all->links, all->n_links, &sequence, buffer);
        else if (few && tables[i].type != RTM_GETRULE)
            error = dump_links(all->scan, space, fd, tables[i], all->links, all->n_links, &sequence,
                               buffer);
        else
            error = dump(all->scan, space, fd, tables[i], 0, &sequence, buffer);
        if (error == -EOPNOTSUPP) /* a kernel without policy rules */
            error = 0;
    }
    if (!error && all->what & RCN_WHAT_NEIGHBOURS) {
        if (own)
            error = read_neighbours(all, space, fd, few, &sequence, buffer);
        else
            error = read_gateways(all->scan, space, fd, &sequence, buffer);
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
        size_t used[6];
        memcpy(used, all->scan->used, sizeof used);
        int error = scan_space(all, space, all->paths[i], &proc, buffer);
        if (!error)
            space->digest = digest_of(all->scan, space, used, all->key);
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
                 uint32_t n_sysctls, uint32_t what, const int32_t *links, uint32_t n_links,
                 const uint8_t *key, struct rcn_scan *scan)
{
    struct scanning all = {paths, n_paths, sysctls, n_sysctls, what, links, n_links, key, scan, 0};
    pthread_t id;

    memset(scan, 0, sizeof *scan);
    scan->spaces = calloc(n_paths ? n_paths : 1, sizeof *scan->spaces);
    if (!scan->spaces)
        return -ENOMEM;
    scan->n_spaces = n_paths;
    /* Only who goes into another namespace needs a thread that is not the caller's. */
    if (n_paths == 1 && !paths[0]) {
        scan_all(&all);
        return all.error;
    }
    int error = pthread_create(&id, NULL, scan_all, &all);
    if (error)
        return -error;
    pthread_join(id, NULL);
    return all.error;
}

void rcn_scan_free(struct rcn_scan *scan)
{
    free(scan->spaces);
    for (int i = 0; i < 6; i++)
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
