/* Drives the C layer under sanitizers: `harness work DIR` makes, scans, repairs and removes
 * namespaces; `harness fuzz DIR` feeds the parser real dumps, cut and garbled. */
#define _GNU_SOURCE
#include "rtnl_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

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
        jobs[i] = (struct rcn_job){paths[i], (uint32_t)base, PER, RCN_CREATE, 0};
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
}

/* Garbled kernel answers: cut anywhere, bytes and lengths altered. */
static void fuzz(void)
{
    static char seed[5][65536], garbled[65536];
    static const uint16_t types[5] = {RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETRULE,
                                      RTM_GETNEIGH};
    size_t sizes[5];
    unsigned dice = 12345;

    for (int t = 0; t < 5; t++) {
        struct {
            struct nlmsghdr header;
            char body[32];
        } ask = {.header = {NLMSG_LENGTH(16), types[t], NLM_F_REQUEST | NLM_F_DUMP, 7, 0}};
        int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
        CHECK(send(fd, &ask, ask.header.nlmsg_len, 0) > 0);
        ssize_t got = recv(fd, seed[t], sizeof seed[t], 0);
        CHECK(got > 0);
        sizes[t] = (size_t)got;
        close(fd);
    }
    for (int round = 0; round < 200000; round++) {
        int t = round % 5;
        struct rcn_scan scan = {0};
        struct rcn_space space = {0};
        size_t size = sizes[t] > 4096 ? 4096 : sizes[t];
        memcpy(garbled, seed[t], size);
        dice = dice * 1103515245u + 12345u;
        if (dice & 0x10000)
            size = (dice >> 8) % (size + 1);
        for (unsigned changes = (dice >> 4) & 7; changes && size; changes--) {
            dice = dice * 1103515245u + 12345u;
            size_t at = (dice >> 8) % size;
            garbled[at] = (char)(dice & 0x40 ? dice >> 16 : (dice & 0x80 ? 0xFF : 0));
        }
        /* A copy of just that size, so that one byte too far is seen. */
        char *exact = malloc(size ? size : 1);
        CHECK(exact);
        memcpy(exact, garbled, size);
        (void)rcn_scan_parse(&scan, &space, exact, size, 7);
        free(exact);
        rcn_scan_free(&scan);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    if (!strcmp(argv[1], "work"))
        work(argv[2]);
    else
        fuzz();
    puts("fine");
    return 0;
}
