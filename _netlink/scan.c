/* Dumps: links, addresses, routes, rules and neighbours of the caller's namespace and of any number
 * of others. */
#define _GNU_SOURCE
#include "scan.h"
#include "digest.h"
#include "question.h"
#include "rtnl_api.h"
#include "socket.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define FEW_LINKS 32 /* from more on, one dump of all is the cheaper question */

static const struct rcn_table NEIGHBOURS = {RTM_GETNEIGH, AF_UNSPEC};
static const struct rcn_table BRIDGED = {RTM_GETNEIGH, AF_BRIDGE};

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
static int read_neighbours(const struct scanning *all, struct rcn_asker *asker, bool few)
{
    const struct rcn_space *space = asker->space;
    size_t size = sizeof(struct rcn_link);
    size_t first = all->scan->used[RCN_LINKS] - space->n_links * size;
    bool ports = false;

    for (uint32_t i = 0; i < space->n_links && !ports; i++) {
        struct rcn_link link;
        memcpy(&link, all->scan->rows[RCN_LINKS] + first + i * size, sizeof link);
        ports = link.master != 0;
    }
    int error = few ? rcn_ask_of_links(asker, NEIGHBOURS, all->links, all->n_links)
                    : rcn_ask_all(asker, NEIGHBOURS, 0);
    if (error || !ports)
        return error;
    return few ? rcn_ask_of_links(asker, BRIDGED, all->links, all->n_links)
               : rcn_ask_all(asker, BRIDGED, 0);
}

/* Whether any link that was read has IPv6. */
static bool has_ipv6(const struct rcn_scan *scan, const struct rcn_space *space)
{
    size_t size = sizeof(struct rcn_link);
    size_t first = scan->used[RCN_LINKS] - space->n_links * size;

    for (uint32_t i = 0; i < space->n_links; i++) {
        struct rcn_link link;
        memcpy(&link, scan->rows[RCN_LINKS] + first + i * size, sizeof link);
        if (link.gen_mode != RCN_NO_IPV6)
            return true;
    }
    return false;
}

/* The tables of one namespace. A dump of one family runs without the kernel's one lock of all
 * links, for which the host's own dump waits, too; a dump of all families holds it. A family that
 * the kernel does not have is answered with all others. */
static int read_tables(const struct scanning *all, struct rcn_asker *asker, bool own)
{
    static const struct {
        uint32_t what;
        struct rcn_table table;
    } tables[] = {
        {RCN_WHAT_LINKS, {RTM_GETLINK, 0}},
        {RCN_WHAT_ADDRESSES, {RTM_GETADDR, AF_INET}},
        {RCN_WHAT_ADDRESSES, {RTM_GETADDR, AF_INET6}},
        {RCN_WHAT_ROUTES, {RTM_GETROUTE, AF_INET}},
        {RCN_WHAT_ROUTES, {RTM_GETROUTE, AF_INET6}},
        {RCN_WHAT_RULES, {RTM_GETRULE, 0}},
    };
    bool few = own && all->n_links && all->n_links <= FEW_LINKS;
    bool apart = false;
    int error = 0;

    for (size_t i = 0; !error && i < sizeof tables / sizeof *tables; i++) {
        struct rcn_table table = tables[i].table;
        bool links = table.type == RTM_GETLINK;
        if (!(all->what & tables[i].what))
            continue;
        if (!apart && table.family == AF_INET6)
            continue;
        if (!apart)
            table.family = 0;
        if (own && links && all->n_links)
            error = rcn_ask_links(asker, all->links, all->n_links);
        else if (few && table.type != RTM_GETRULE)
            error = rcn_ask_of_links(asker, table, all->links, all->n_links);
        else
            error = rcn_ask_all(asker, table, 0);
        if (error == -EOPNOTSUPP) /* a kernel without policy rules */
            error = 0;
        if (links && !few)
            apart = has_ipv6(asker->scan, asker->space);
    }
    if (error || !(all->what & RCN_WHAT_NEIGHBOURS))
        return error;
    return own ? read_neighbours(all, asker, few) : rcn_ask_gateways(asker);
}

static int scan_space(const struct scanning *all, struct rcn_space *space, const char *path,
                      struct rcn_procfs *proc, char *buffer)
{
    struct stat found;
    int error = 0;
    bool fresh = path && !*path;
    bool own = !path || fresh;

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
    struct rcn_asker asker = {all->scan, space, rcn_socket_open(), 0, buffer};
    if (asker.fd < 0)
        return asker.fd;
    space->cookie = rcn_socket_cookie(asker.fd);
    error = read_tables(all, &asker, own);
    close(asker.fd);
    if (!error && all->n_sysctls)
        error = read_sysctls(all->scan, space, proc, all->sysctls, all->n_sysctls);
    return error;
}

static void *scan_all(void *argument)
{
    struct scanning *all = argument;
    struct rcn_procfs proc = {.fd = -1};
    char *buffer = malloc(RCN_RECEIVE);

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
            /* Whose namespace it is is known all the same, if it was entered. */
            *space = (struct rcn_space){.error = -error, .cookie = space->cookie};
            memcpy(all->scan->used, used, sizeof used);
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
