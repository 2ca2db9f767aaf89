/* Connections that the kernel remembers: one dump of its table, and what is stale is deleted. */
#define _GNU_SOURCE
#include "conntrack.h"
#include "socket.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* Made by nf_conntrack and by nothing else: /proc/sys/net/netfilter stands without it. */
#define COUNT_PATH "/proc/sys/net/netfilter/nf_conntrack_count"
#define RECEIVE 32768
#define TORN_TRIES 50
/* Deletions in one datagram. Each may be answered, and an answer counts a KiB at most against the
 * memory of the socket. */
#define BATCH 256
#define ANSWERS (2 * BATCH * 1024)

typedef int parser(struct rcn_stale *stale, const char *data, size_t size, uint32_t sequence);

static int dump_once(int fd, const struct nlmsghdr *request, parser *parse, struct rcn_stale *stale)
{
    _Alignas(NLMSG_ALIGNTO) char buffer[RECEIVE];
    int done = send(fd, request, request->nlmsg_len, 0) < 0 ? -errno : 0;

    while (!done) {
        struct sockaddr_nl from = {0};
        socklen_t length = sizeof from;
        ssize_t got = recvfrom(fd, buffer, sizeof buffer, 0, (struct sockaddr *)&from, &length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (!from.nl_pid) /* only the kernel is believed */
            done = parse(stale, buffer, (size_t)got, request->nlmsg_seq);
    }
    return done < 0 ? done : 0;
}

/* A dump that is torn or cut is begun again, on a socket of its own: what is left of the old answer
 * cannot be taken for the new one. */
static int dump(int protocol, const struct nlmsghdr *request, parser *parse,
                struct rcn_stale *stale, uint32_t *dumps)
{
    const size_t n_locals = stale->n_locals;
    int error = 0;

    for (int i = 0; i < TORN_TRIES; i++) {
        int fd = rcn_socket_open_for(protocol);
        if (fd < 0)
            return fd;
        ++*dumps;
        error = dump_once(fd, request, parse, stale);
        close(fd);
        if (error != -EINTR && error != -ENOBUFS)
            return error;
        stale->used = 0;
        stale->seen = 0;
        stale->n_locals = n_locals;
    }
    return error;
}

/* The host's own addresses, as routing knows them: 127.0.0.0/8 is one route. */
static int dump_locals(struct rcn_stale *stale)
{
    static const uint8_t families[] = {AF_INET, AF_INET6};
    uint32_t dumps = 0;
    int error = 0;

    for (size_t i = 0; !error && i < sizeof families; i++) {
        struct {
            struct nlmsghdr header;
            struct rtmsg body;
        } request = {
            .header = {sizeof request, RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, 1, 0},
            .body = {.rtm_family = families[i], .rtm_table = RT_TABLE_LOCAL, .rtm_type = RTN_LOCAL},
        };
        if (!rcn_stale_wants_locals(stale, families[i]))
            continue;
        error = dump(NETLINK_ROUTE, &request.header, rcn_locals_parse, stale, &dumps);
        if (error == -EOPNOTSUPP || error == -ENOENT) /* a kernel without IPv6 */
            error = 0;
    }
    rcn_stale_locals_close(stale);
    return error;
}

/* Wait for the answer to message `last`; what is answered before it went wrong. */
static int answers(int fd, uint32_t first, uint32_t last, struct rcn_forgotten *result)
{
    _Alignas(NLMSG_ALIGNTO) char buffer[RECEIVE];

    for (;;) {
        ssize_t got = recv(fd, buffer, sizeof buffer, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        size_t left = (size_t)got;
        for (const char *at = buffer; left >= NLMSG_HDRLEN + sizeof(int);) {
            const struct nlmsghdr *header = (const struct nlmsghdr *)at;
            if (header->nlmsg_len < NLMSG_HDRLEN + sizeof(int) || header->nlmsg_len > left)
                break;
            if (header->nlmsg_type == NLMSG_ERROR && header->nlmsg_seq >= first &&
                header->nlmsg_seq <= last) {
                int error = *(const int *)NLMSG_DATA(header);
                result->deleted -= error != 0;
                if (error && error != -ENOENT) { /* that one went by itself */
                    result->failed++;
                    result->error = -error;
                }
                if (header->nlmsg_seq == last)
                    return 0;
            }
            size_t step = NLMSG_ALIGN(header->nlmsg_len);
            if (step > left)
                step = left;
            at += step;
            left -= step;
        }
    }
}

static int delete_found(struct rcn_stale *stale, struct rcn_forgotten *result)
{
    int fd = rcn_socket_open_for(NETLINK_NETFILTER);
    int error = fd < 0 ? fd : 0;
    int memory = ANSWERS;
    uint32_t sequence = 0;

    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &memory, sizeof memory))
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &memory, sizeof memory);
    for (size_t at = 0; !error && at < stale->used;) {
        struct nlmsghdr *header = NULL;
        uint32_t first = sequence + 1;
        size_t end = at;
        while (end < stale->used && sequence - first + 1 < BATCH) {
            header = (struct nlmsghdr *)(stale->messages + end);
            header->nlmsg_seq = ++sequence;
            end += header->nlmsg_len;
        }
        header->nlmsg_flags |= NLM_F_ACK;
        ssize_t sent;
        do
            sent = send(fd, stale->messages + at, end - at, 0);
        while (sent < 0 && errno == EINTR);
        if (sent < 0) {
            error = -errno;
            break;
        }
        result->deleted += sequence - first + 1;
        error = answers(fd, first, sequence, result);
        at = end;
    }
    if (fd >= 0)
        close(fd);
    return error;
}

/* Whether the kernel remembers a connection at all. To ask ctnetlink itself would load modules. */
static bool remembers(void)
{
    char text[16] = "";
    int fd = open(COUNT_PATH, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    return size > 0 && strtoul(text, NULL, 10) > 0;
}

int rcn_conntrack_forget(const struct rcn_peer *peers, uint32_t n_peers,
                         const struct rcn_published *ports, uint32_t n_ports,
                         struct rcn_forgotten *result)
{
    struct {
        struct nlmsghdr header;
        struct nfgenmsg body;
    } request = {
        .header = {sizeof request, CTNETLINK(IPCTNL_MSG_CT_GET), NLM_F_REQUEST | NLM_F_DUMP, 1, 0},
        .body = {AF_UNSPEC, NFNETLINK_V0, 0},
    };
    struct rcn_stale stale;

    memset(result, 0, sizeof *result);
    if ((!n_peers && !n_ports) || !remembers())
        return 0;
    int error = rcn_stale_open(&stale, peers, n_peers, ports, n_ports);
    if (!error)
        error = dump_locals(&stale);
    if (!error) {
        error =
            dump(NETLINK_NETFILTER, &request.header, rcn_conntrack_parse, &stale, &result->dumps);
        result->seen = stale.seen;
        if (!error && stale.used)
            error = delete_found(&stale, result);
        /* A kernel that remembers and cannot be asked, for it lacks nfnetlink or ctnetlink. */
        if (error == -EPROTONOSUPPORT || error == -ENOENT || error == -EINVAL)
            error = 0;
    }
    rcn_stale_free(&stale);
    return error;
}
