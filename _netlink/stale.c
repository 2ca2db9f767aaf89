/* Which entries of conntrack are stale. A table may hold a million of them: each is judged by
 * binary searches alone. */
#define _GNU_SOURCE
#include "conntrack.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Addresses from `first` to `last`. */
struct rcn_stretch {
    struct rcn_peer first;
    struct rcn_peer last;
};

static int by_peer(const void *one, const void *other)
{
    return memcmp(one, other, sizeof(struct rcn_peer));
}

/* Each run that is asked for is kept as one without a target: what it holds is stale. One that
 * names a target is kept a second time with it, and with the distance from host port to target port
 * in target_port: what that one holds is not. Runs of the same words that overlap (what was and
 * what will be) are joined, so that a single search answers. */
#define KEY offsetof(struct rcn_published, first)

static int by_run(const void *one, const void *other)
{
    const struct rcn_published *a = one, *b = other;
    int order = memcmp(a, b, KEY);

    return order ? order : (int)a->first - (int)b->first;
}

static void join_runs(struct rcn_stale *stale)
{
    size_t kept = 0;

    qsort(stale->runs, stale->n_runs, sizeof *stale->runs, by_run);
    for (size_t i = 1; i < stale->n_runs; i++) {
        struct rcn_published *end = &stale->runs[kept], *run = &stale->runs[i];
        if (memcmp(end, run, KEY) || run->first > end->last)
            stale->runs[++kept] = *run;
        else if (run->last > end->last)
            end->last = run->last;
    }
    stale->n_runs = kept + 1;
}

int rcn_stale_open(struct rcn_stale *stale, const struct rcn_peer *peers, uint32_t n_peers,
                   const struct rcn_published *ports, uint32_t n_ports)
{
    memset(stale, 0, sizeof *stale);
    stale->peers = peers;
    stale->n_peers = n_peers;
    if (!n_ports)
        return 0;
    stale->runs = calloc(n_ports, 2 * sizeof *stale->runs);
    if (!stale->runs)
        return -ENOMEM;
    for (uint32_t i = 0; i < n_ports; i++) {
        struct rcn_published *run = &stale->runs[stale->n_runs++];
        run->host = ports[i].host;
        run->any_host = !!ports[i].any_host;
        run->protocol = ports[i].protocol;
        run->first = ports[i].first;
        run->last = ports[i].last;
        if (!ports[i].has_target)
            continue;
        struct rcn_published *leads = &stale->runs[stale->n_runs++];
        *leads = *run;
        leads->has_target = 1;
        leads->target = ports[i].target;
        leads->target_port = (uint16_t)(ports[i].target_port - ports[i].first);
    }
    join_runs(stale);
    return 0;
}

void rcn_stale_free(struct rcn_stale *stale)
{
    free(stale->runs);
    free(stale->locals);
    free(stale->messages);
    memset(stale, 0, sizeof *stale);
}

bool rcn_stale_wants_locals(const struct rcn_stale *stale, uint8_t family)
{
    for (size_t i = 0; i < stale->n_runs; i++)
        if (stale->runs[i].any_host && stale->runs[i].host.family == family)
            return true;
    return false;
}

int rcn_stale_local(struct rcn_stale *stale, const struct rcn_peer *address, uint8_t prefix)
{
    size_t width = address->family == AF_INET6 ? 16 : 4;

    if (prefix > width * 8)
        return 0;
    if (stale->n_locals == stale->room_locals) {
        size_t room = stale->room_locals ? stale->room_locals * 2 : 64;
        struct rcn_stretch *locals = realloc(stale->locals, room * sizeof *locals);
        if (!locals)
            return -ENOMEM;
        stale->locals = locals;
        stale->room_locals = room;
    }
    struct rcn_stretch *one = &stale->locals[stale->n_locals++];
    one->first = one->last = *address;
    for (size_t i = prefix / 8; i < width; i++) {
        uint8_t host = i == prefix / 8 ? (uint8_t)(0xFF >> prefix % 8) : 0xFF;
        one->first.address[i] &= (uint8_t)~host;
        one->last.address[i] |= host;
    }
    return 0;
}

void rcn_stale_locals_close(struct rcn_stale *stale)
{
    size_t kept = 0;

    if (!stale->n_locals)
        return;
    qsort(stale->locals, stale->n_locals, sizeof *stale->locals, by_peer);
    for (size_t i = 1; i < stale->n_locals; i++) {
        struct rcn_stretch *end = &stale->locals[kept], *one = &stale->locals[i];
        if (by_peer(&one->first, &end->last) > 0)
            stale->locals[++kept] = *one;
        else if (by_peer(&one->last, &end->last) > 0)
            end->last = one->last;
    }
    stale->n_locals = kept + 1;
}

static bool is_local(const struct rcn_stale *stale, const struct rcn_peer *address)
{
    size_t low = 0, high = stale->n_locals; /* the first stretch behind the address */

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (by_peer(&stale->locals[middle].first, address) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low && by_peer(address, &stale->locals[low - 1].last) <= 0;
}

static bool is_peer(const struct rcn_stale *stale, const struct rcn_peer *address)
{
    return bsearch(address, stale->peers, stale->n_peers, sizeof *address, by_peer) != NULL;
}

/* Whether a run of just these words holds the port, which stands in `words->first`. */
static bool holds(const struct rcn_stale *stale, const struct rcn_published *words)
{
    size_t low = 0, high = stale->n_runs; /* the first run that begins behind the port */

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (by_run(&stale->runs[middle], words) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low && !memcmp(&stale->runs[low - 1], words, KEY) &&
           stale->runs[low - 1].last >= words->first;
}

static bool is_published(const struct rcn_stale *stale, const struct rcn_tuple *original,
                         const struct rcn_tuple *reply)
{
    struct rcn_published words;

    if (!original->has_ports || !stale->n_runs)
        return false;
    memset(&words, 0, sizeof words);
    words.protocol = original->protocol;
    words.first = original->destination_port;
    words.host = original->destination;
    /* What is published on that very address goes before what is on every one. */
    if (!holds(stale, &words)) {
        words.any_host = 1;
        memset(words.host.address, 0, sizeof words.host.address);
        /* Every address of the *host*: a member's own connection to port 443 of some server
         * beyond the uplink has the same destination port, and lives on. */
        if (!holds(stale, &words) || !is_local(stale, &original->destination))
            return false;
    }
    words.has_target = 1;
    words.target = reply->source;
    words.target_port = (uint16_t)(reply->source_port - original->destination_port);
    return !holds(stale, &words);
}

bool rcn_stale_holds(const struct rcn_stale *stale, const struct rcn_tuple *original,
                     const struct rcn_tuple *reply)
{
    if (stale->n_peers &&
        (is_peer(stale, &original->source) || is_peer(stale, &original->destination) ||
         is_peer(stale, &reply->source) || is_peer(stale, &reply->destination)))
        return true;
    return is_published(stale, original, reply);
}
