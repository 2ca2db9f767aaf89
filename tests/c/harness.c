/* Drives the C layer under sanitizers: `harness work DIR` makes, scans, repairs and removes
 * namespaces; `harness fuzz DIR` feeds the parser real dumps, cut and garbled; `harness conntrack
 * DIR` does both with connections (a rule that asks for their state must stand). */
#define _GNU_SOURCE
#include "conntrack.h"
#include "message.h"
#include "rtnl_api.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>

#define COUNT 8
#define PER 7
#define CHECK(x)                                            \
    do {                                                    \
        if (!(x)) {                                         \
            fprintf(stderr, "line %d: %s\n", __LINE__, #x); \
            exit(1);                                        \
        }                                                   \
    } while (0)

static struct rcn_step steps[COUNT * PER];
static struct rcn_job jobs[COUNT];
static struct rcn_result results[COUNT];
static char paths[COUNT][256];

static struct rcn_step *step(int number, int kind, int inside, int index)
{
    struct rcn_step *s = &steps[number];

    memset(s, 0, sizeof *s);
    s->kind = (uint8_t)kind;
    s->inside = (uint8_t)inside;
    s->index = index;
    return s;
}

static void prepare(const char *dir)
{
    static const uint8_t mac[6] = {2, 1, 1, 1, 1, 1}, peer[6] = {2, 2, 2, 2, 2, 2};

    for (int i = 0; i < COUNT; i++) {
        int base = i * PER;
        struct rcn_step *s = step(base, RCN_VETH, 0, 5000 + i);
        snprintf(s->link, sizeof s->link, "hv%d", i);
        snprintf(s->name, sizeof s->name, "eth0");
        snprintf(s->text, sizeof s->text, "runcnet:n/c%d/eth0", i);
        memcpy(s->mac, mac, 6);
        memcpy(s->peer_mac, peer, 6);
        s->mtu = 1500;
        s->priority = 2;
        s->gen_mode = 1;
        s = step(base + 1, RCN_LINK, 1, 1);
        s->set = RCN_SET_UP | RCN_SET_ALIAS;
        snprintf(s->text, sizeof s->text, "runcnet:c%d", i);
        s = step(base + 2, RCN_LINK, 1, 2);
        s->set = RCN_SET_UP;
        s = step(base + 3, RCN_ADDRESS, 1, 0);
        snprintf(s->link, sizeof s->link, "eth0");
        s->family = AF_INET;
        s->prefix = 24;
        memcpy(s->address, (uint8_t[]){10, 0, 0, (uint8_t)(i + 2)}, 4);
        s = step(base + 4, RCN_ROUTE, 1, 2);
        s->family = AF_INET;
        s->has_via = 1;
        s->table = 254;
        memcpy(s->via, (uint8_t[]){10, 0, 0, 1}, 4);
        s = step(base + 5, RCN_RULE, 1, 0);
        s->family = AF_INET;
        s->prefix = 32;
        s->table = 0x7201;
        s->priority = 0x7200;
        memcpy(s->address, (uint8_t[]){10, 0, 0, (uint8_t)(i + 2)}, 4);
        s = step(base + 6, RCN_SYSCTL, 1, 0);
        memcpy(s->text,
               "net.core.somaxconn\0"
               "99",
               22);
        snprintf(paths[i], sizeof paths[i], "%s/c%d", dir, i);
        jobs[i] = (struct rcn_job){paths[i], (uint32_t)base, PER, RCN_CREATE, 0, 0};
    }
}

static void work(const char *dir)
{
    const char *names[COUNT + 1];
    const char *sysctls[] = {"net.core.somaxconn", "net.no.such"};
    static const uint8_t key[16] = {1}, other[16] = {2};
    struct rcn_scan scan;
    uint64_t digest;

    prepare(dir);
    CHECK(!rcn_run(jobs, COUNT, steps, results));
    for (int i = 0; i < COUNT; i++) {
        CHECK(!results[i].error && results[i].cookie);
        names[i] = paths[i];
    }
    /* A second time: the paths are taken, and every job fails at its end. */
    CHECK(!rcn_run(jobs, 1, steps, results));
    CHECK(results[0].error);
    names[COUNT] = "/etc/passwd";
    CHECK(!rcn_scan_run(names, COUNT, sysctls, 2, RCN_WHAT_ALL, NULL, 0, other, &scan));
    digest = scan.spaces[0].digest;
    rcn_scan_free(&scan);
    CHECK(!rcn_scan_run(names, COUNT + 1, sysctls, 2, RCN_WHAT_ALL, NULL, 0, key, &scan));
    CHECK(digest && scan.spaces[0].digest && digest != scan.spaces[0].digest);
    CHECK(scan.spaces[0].n_links == 2 && scan.spaces[COUNT].error);
    CHECK(!memcmp(scan.rows[5] + scan.spaces[0].sysctls, "+99\n\0-", 6));
    rcn_scan_free(&scan);
    for (int i = 0; i < COUNT; i++)
        CHECK(!rcn_unbind(paths[i]));
    const struct rcn_peer to[] = {
        {AF_INET, {127, 0, 0, 1}}, {AF_INET, {203, 0, 113, 9}}, {AF_INET6, {0xfd}}};
    struct rcn_route found[3];
    CHECK(!rcn_routes_to(to, 3, found));
    CHECK(!found[0].family && !found[1].prefix && !found[2].prefix);
}

/* The first datagram of a dump. */
static size_t seed_of(int protocol, uint16_t type, size_t body, char *seed, size_t room)
{
    struct {
        struct nlmsghdr header;
        char body[32];
    } ask = {.header = {(uint32_t)NLMSG_LENGTH(body), type, NLM_F_REQUEST | NLM_F_DUMP, 7, 0}};
    int fd = socket(AF_NETLINK, SOCK_RAW, protocol);

    CHECK(send(fd, &ask, ask.header.nlmsg_len, 0) > 0);
    ssize_t got = recv(fd, seed, room, 0);
    CHECK(got > 0);
    close(fd);
    return (size_t)got;
}

/* Garbled kernel answers: cut anywhere, bytes and lengths altered. A copy of just that size, so
 * that one byte too far is seen. */
static char *garbled(const char *seed, size_t *size, unsigned *dice)
{
    if (*size > 4096)
        *size = 4096;
    *dice = *dice * 1103515245u + 12345u;
    if (*dice & 0x10000)
        *size = (*dice >> 8) % (*size + 1);
    char *exact = malloc(*size ? *size : 1);
    CHECK(exact);
    memcpy(exact, seed, *size);
    for (unsigned changes = (*dice >> 4) & 7; changes && *size; changes--) {
        *dice = *dice * 1103515245u + 12345u;
        size_t at = (*dice >> 8) % *size;
        exact[at] = (char)(*dice & 0x40 ? *dice >> 16 : (*dice & 0x80 ? 0xFF : 0));
    }
    return exact;
}

static void fuzz(void)
{
    static char seed[5][65536];
    static const uint16_t types[5] = {RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETRULE,
                                      RTM_GETNEIGH};
    size_t sizes[5];
    unsigned dice = 12345;

    for (int t = 0; t < 5; t++)
        sizes[t] = seed_of(NETLINK_ROUTE, types[t], 16, seed[t], sizeof seed[t]);
    for (int round = 0; round < 200000; round++) {
        int t = round % 5;
        struct rcn_scan scan = {0};
        struct rcn_space space = {0};
        size_t size = sizes[t];
        char *exact = garbled(seed[t], &size, &dice);
        (void)rcn_scan_parse(&scan, &space, exact, size, 7);
        free(exact);
        rcn_scan_free(&scan);
    }
}

/* Entries of both families: from one socket to many ports of the host itself, always the same. */
static void connect_to_many(void)
{
    static const struct sockaddr_in own4 = {.sin_family = AF_INET, .sin_port = 0x2823};
    static const struct sockaddr_in6 own6 = {.sin6_family = AF_INET6, .sin6_port = 0x2823};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd4 = socket(AF_INET, SOCK_DGRAM, 0), fd6 = socket(AF_INET6, SOCK_DGRAM, 0);
    int one = 1;

    CHECK(!setsockopt(fd6, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one));
    CHECK(!bind(fd4, (const struct sockaddr *)&own4, sizeof own4));
    CHECK(!bind(fd6, (const struct sockaddr *)&own6, sizeof own6));
    for (uint16_t port = 2000; port < 2400; port++) {
        /* What comes back is an error, and the next call may say so. */
        four.sin_port = six.sin6_port = htons(port);
        (void)!sendto(fd4, "x", 1, 0, (struct sockaddr *)&four, sizeof four);
        (void)!sendto(fd6, "x", 1, 0, (struct sockaddr *)&six, sizeof six);
    }
    close(fd4);
    close(fd6);
}

/* Each deletion names one entry by its tuple and its id: without a tuple the kernel would delete
 * all that it remembers. */
static void check_deletions(const struct rcn_stale *stale)
{
    size_t at = 0;

    while (at < stale->used) {
        const struct nlmsghdr *header = (const struct nlmsghdr *)(stale->messages + at);
        struct rcn_attributes all = {stale->messages + at + NLMSG_LENGTH(4),
                                     header->nlmsg_len - NLMSG_LENGTH(4)};
        struct rcn_attribute tuple, id;
        CHECK(header->nlmsg_len <= stale->used - at && header->nlmsg_len > NLMSG_LENGTH(4));
        CHECK(rcn_next(&all, &tuple) && tuple.type == CTA_TUPLE_ORIG && tuple.size > 4);
        CHECK(rcn_next(&all, &id) && id.type == CTA_ID && id.size == 4);
        at += header->nlmsg_len;
    }
    CHECK(at == stale->used);
}

static const struct rcn_peer peers[] = {{AF_INET, {127, 0, 0, 1}}, {AF_INET6, {[15] = 1}}};

/* What befalls the next dumps (the test links recvfrom to what follows). */
static enum { NOTHING, NO_BUFFERS, TORN, ALL_GONE, ALL_NEW } fate;

ssize_t __real_recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *from,
                        socklen_t *length);
ssize_t __wrap_recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *from,
                        socklen_t *length);

ssize_t __wrap_recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *from,
                        socklen_t *length)
{
    static int calls;
    int now = fate;
    ssize_t got = __real_recvfrom(fd, data, size, flags, from, length);
    const struct nlmsghdr *end = (const struct nlmsghdr *)((char *)data + got - NLMSG_LENGTH(4));
    CHECK(got >= (ssize_t)NLMSG_LENGTH(4));
    /* The table changes when it has been read to its end; a dump is cut once it has begun. */
    bool late = now == ALL_GONE || now == ALL_NEW;
    if (now == NOTHING || (late ? end->nlmsg_type != NLMSG_DONE : ++calls % 2))
        return got;
    fate = NOTHING;
    if (now == NO_BUFFERS) {
        errno = ENOBUFS;
        return -1;
    }
    if (now == TORN)
        ((struct nlmsghdr *)data)->nlmsg_flags |= NLM_F_DUMP_INTR;
    if (late) {
        struct rcn_forgotten result;
        CHECK(!rcn_conntrack_forget(peers, 2, NULL, 0, &result) && result.deleted >= 800);
    }
    if (now == ALL_NEW)
        connect_to_many();
    return got;
}

static void forget_all(int what, struct rcn_forgotten *result)
{
    connect_to_many();
    fate = what;
    CHECK(!rcn_conntrack_forget(peers, 2, NULL, 0, result));
    CHECK(fate == NOTHING && !result->failed);
}

static void interrupted(void)
{
    struct rcn_forgotten result;

    forget_all(NO_BUFFERS, &result);
    CHECK(result.dumps == 2 && result.deleted >= 800 && result.deleted <= result.seen);
    forget_all(TORN, &result);
    CHECK(result.dumps == 2 && result.deleted >= 800 && result.deleted <= result.seen);
    forget_all(ALL_GONE, &result);
    CHECK(result.dumps == 1 && !result.deleted);
    /* An id is made of an entry's place in memory: now and then one comes again. */
    forget_all(ALL_NEW, &result);
    CHECK(result.dumps == 1 && result.deleted < 400);
    CHECK(!rcn_conntrack_forget(peers, 2, NULL, 0, &result) && result.deleted > 400);
}

static void conntrack(void)
{
    static char seed[2][65536];
    struct rcn_published ports[] = {
        {.host = {.family = AF_INET}, .protocol = 17, .any_host = 1, .first = 2000, .last = 2199},
        {.host = {AF_INET6, {[15] = 1}},
         .target = {AF_INET6, {[15] = 1}},
         .protocol = 17,
         .has_target = 1,
         .target_port = 3000,
         .first = 2000,
         .last = 2099},
    };
    struct rcn_forgotten result;
    struct rcn_stale stale;
    unsigned dice = 12345;
    size_t sizes[2];

    connect_to_many();
    sizes[0] = seed_of(NETLINK_NETFILTER, CTNETLINK(IPCTNL_MSG_CT_GET), 4, seed[0], sizeof seed[0]);
    sizes[1] = seed_of(NETLINK_ROUTE, RTM_GETROUTE, 12, seed[1], sizeof seed[1]);
    for (int round = 0; round < 100000; round++) {
        int t = round % 2;
        size_t size = sizes[t];
        CHECK(!rcn_stale_open(&stale, peers, round % 3 ? 0 : 2, ports, 2));
        char *exact = round < 2 ? seed[t] : garbled(seed[t], &size, &dice);
        if (t) {
            (void)rcn_locals_parse(&stale, exact, size, 7);
            rcn_stale_locals_close(&stale);
        } else {
            (void)rcn_conntrack_parse(&stale, exact, size, 7);
            check_deletions(&stale);
        }
        CHECK(round || (stale.seen && stale.used)); /* the seed is worth garbling */
        CHECK(round != 1 || stale.n_locals);
        if (round >= 2)
            free(exact);
        rcn_stale_free(&stale);
    }
    CHECK(!rcn_conntrack_forget(NULL, 0, ports, 2, &result));
    CHECK(result.dumps == 1 && result.deleted == 300 && !result.failed);
    CHECK(!rcn_conntrack_forget(peers, 2, NULL, 0, &result));
    CHECK(result.deleted >= 500 && !result.failed);
    interrupted();
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    if (!strcmp(argv[1], "work"))
        work(argv[2]);
    else if (!strcmp(argv[1], "conntrack"))
        conntrack();
    else
        fuzz();
    puts("fine");
    return 0;
}
