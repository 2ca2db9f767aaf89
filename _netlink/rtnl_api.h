/* The public interface of the C layer. The same text goes to cffi's cdef: plain declarations only
 * (lines that begin with # are left out there).
 *
 * A batch is an array of jobs; a job is a run of steps. Steps marked `inside` act in the job's
 * network namespace, all others in the caller's. A result for each job says which step failed.
 * All functions answer 0 or a negative errno, and may be called without the GIL. */

#pragma once
#include <stddef.h>
#include <stdint.h>

enum rcn_mode { RCN_HOST, RCN_ENTER, RCN_CREATE };

enum rcn_kind {
    RCN_VETH = 1,
    RCN_BRIDGE,
    RCN_LINK,
    RCN_DELETE_LINK,
    RCN_ADDRESS,
    RCN_ROUTE,
    RCN_RULE,
    RCN_NEIGHBOUR,
    RCN_SYSCTL
};

/* How a bridge treats a port of its own. A veth that is made locked gets the entry of its inner
 * end's MAC in the bridge's table along. */
enum rcn_port {
    RCN_PORT_ISOLATED = 1, /* nothing between two such ports */
    RCN_PORT_HAIRPIN = 2,  /* a frame may leave where it came in */
    RCN_PORT_LOCKED = 4    /* only MACs that are told stand behind it, and none is learned */
};

/* What an RCN_LINK step sets, but for RCN_SET_IF_THERE. */
enum rcn_set {
    RCN_SET_NAME = 1,
    RCN_SET_MAC = 2,
    RCN_SET_MTU = 4,
    RCN_SET_MASTER = 8,
    RCN_SET_UP = 16,
    RCN_SET_DOWN = 32,
    RCN_SET_ALIAS = 64,
    RCN_SET_GEN_MODE = 128,
    RCN_SET_PORT = 256,
    RCN_SET_GROUP = 512,
    RCN_SET_FLUSH = 1024,    /* what the bridge has learned behind that port */
    RCN_SET_IF_THERE = 2048, /* of an RCN_SYSCTL step: no error where there is no such entry */
    RCN_SET_SNOOP = 4096 /* a bridge follows multicast groups (it is made so that it does not) */
};

struct rcn_job {
    const char *path; /* of the namespace; NULL for RCN_HOST */
    uint32_t first;   /* number of its first step */
    uint32_t count;
    uint32_t mode;
    uint32_t unused;
    uint64_t cookie; /* that the namespace at `path` must have, else ESTALE; 0: any */
};

/* 384 bytes; what a field means depends on the kind. Addresses are in network byte order. A
 * neighbour of family AF_BRIDGE is an entry of a bridge's table: `mac` is behind that port,
 * whatever is heard elsewhere (static and sticky). */
struct rcn_step {
    uint8_t kind;
    uint8_t inside;
    uint8_t family;
    uint8_t prefix;
    uint8_t remove; /* take away rather than add */
    uint8_t scope;
    uint8_t has_via;
    uint8_t has_source;
    int32_t index;     /* of the link; 0: looked up by `link` */
    int32_t other;     /* master; 0: none */
    uint32_t mtu;      /* bytes */
    uint32_t table;    /* of a route or rule; the device group of a link */
    uint32_t priority; /* of a route or rule; the number of a veth's inner end */
    uint32_t set;      /* enum rcn_set */
    uint8_t gen_mode;
    uint8_t port; /* enum rcn_port */
    uint8_t mac[6];
    uint8_t peer_mac[6];
    uint8_t protocol; /* of a route; 0: ours, in the place of whatever led there */
    uint8_t unused;
    uint8_t address[16];
    uint8_t via[16];
    uint8_t source[16];
    char link[16];
    char name[16];  /* of the inner end, or the new one */
    char text[256]; /* an alias; or a sysctl's path and, behind its NUL, the value */
};

struct rcn_result {
    uint64_t cookie; /* SO_NETNS_COOKIE of the job's namespace */
    int32_t error;   /* a positive errno; 0: all went well */
    int32_t step;    /* number of the step that failed; -1: making, -2: binding the namespace */
    char text[128];  /* the kernel's own words, or empty */
};

/* Carry the jobs out, in order. Where several namespaces are made, a second thread makes them
 * ahead, with those first steps of their jobs that are all inside. */
int rcn_run(const struct rcn_job *jobs, uint32_t n_jobs, const struct rcn_step *steps,
            struct rcn_result *results);

/* What a scan asks for. */
enum rcn_what {
    RCN_WHAT_LINKS = 1,
    RCN_WHAT_ADDRESSES = 2,
    RCN_WHAT_ROUTES = 4,
    RCN_WHAT_RULES = 8,
    RCN_WHAT_NEIGHBOURS = 16,
    RCN_WHAT_ALL = 31
};

/* In place of a value that a link without IPv6 does not have (below 1,280 bytes, for one). */
enum rcn_absent { RCN_NO_IPV6 = 255 };

struct rcn_link {
    int32_t index;
    uint32_t flags;
    uint32_t mtu;
    int32_t master;
    int32_t peer;
    int32_t peer_nsid;
    uint32_t group;
    uint8_t gen_mode;  /* RCN_NO_IPV6 where the link has no IPv6 */
    uint8_t accept_ra; /* the sysctl of that name; RCN_NO_IPV6 likewise */
    uint8_t port;      /* enum rcn_port */
    uint8_t ipv6_off;  /* the sysctl disable_ipv6; RCN_NO_IPV6 likewise */
    uint8_t unused[2];
    uint8_t mac[6];
    char name[16];
    char kind[16];
    uint32_t alias; /* offset in the heap */
    uint32_t alias_size;
    uint64_t digest; /* of all above and the alias: equal digests, equal links */
};

struct rcn_address {
    int32_t index;
    uint32_t flags;
    uint8_t family;
    uint8_t prefix;
    uint8_t scope;
    uint8_t protocol;
    uint8_t address[16];
};

struct rcn_route {
    int32_t index;
    uint32_t table;
    uint32_t metric;
    uint8_t family;
    uint8_t prefix;
    uint8_t protocol;
    uint8_t scope;
    uint8_t type;
    uint8_t has_via;
    uint8_t has_source;
    uint8_t unused;
    uint8_t to[16];
    uint8_t via[16];
    uint8_t source[16];
};

struct rcn_rule {
    uint32_t priority;
    uint32_t table;
    uint8_t family;
    uint8_t prefix;
    uint8_t protocol;
    uint8_t plain;
    uint8_t source[16];
};

/* Permanent entries that carry our protocol number, only. Of family AF_BRIDGE: static and sticky
 * entries of bridges' tables, `index` is the port's. */
struct rcn_neighbour {
    int32_t index;
    uint8_t family;
    uint8_t unused;
    uint8_t mac[6];
    uint8_t address[16];
};

struct rcn_space {
    uint64_t cookie;
    uint64_t inode;
    uint64_t digest; /* of all that was read: equal digests, equal rows */
    int32_t error;   /* a positive errno; 0: read whole */
    uint32_t n_links;
    uint32_t n_addresses;
    uint32_t n_routes;
    uint32_t n_rules;
    uint32_t n_neighbours;
    uint32_t sysctls; /* offset in the heap: one text a name, each behind '+', or '-' where absent,
                         NUL-ended */
};

/* Rows of all spaces one behind the other, in the order of the spaces. */
struct rcn_scan {
    struct rcn_space *spaces;
    uint32_t n_spaces;
    char *rows[6];  /* links, addresses, routes, rules, neighbours, heap */
    size_t used[6]; /* bytes */
    size_t room[6];
};

/* Dump `what` of the namespaces at `paths`; a NULL path is the caller's own, an empty one a fresh
 * namespace that nobody sees. Of neighbours, the caller's own are all dumped, elsewhere only the
 * gateways looked up to which a link route of ours leads: one table serves all namespaces of a
 * kernel, and each dump walks it whole. Where `links` are given, of the caller's own links only
 * these are asked for, by number; where they are few, of addresses, routes and neighbours only
 * theirs, and of `lo` the addresses alone. `key`: 16 bytes, secret from whoever acts inside a
 * namespace; digests under different keys say nothing about each other. To be freed by
 * rcn_scan_free, also after an error. */
int rcn_scan_run(const char *const *paths, uint32_t n_paths, const char *const *sysctls,
                 uint32_t n_sysctls, uint32_t what, const int32_t *links, uint32_t n_links,
                 const uint8_t *key, struct rcn_scan *scan);
void rcn_scan_free(struct rcn_scan *scan);

/* Read one netlink datagram of a dump into the scan; what the fuzzer calls. Answers 1 where the
 * dump is over, 0 where more follows. */
int rcn_scan_parse(struct rcn_scan *scan, struct rcn_space *space, const char *data, size_t size,
                   uint32_t sequence);

uint64_t rcn_cookie(void);
int rcn_unbind(const char *path);
int rcn_bind(const char *source, const char *path);
int rcn_share(const char *directory);

/* An address, in network byte order: IPv4 in the first four bytes, zeros behind them. */
struct rcn_peer {
    uint8_t family;
    uint8_t address[16];
};

/* The caller's route that leads to each of these addresses as the kernel looks it up, as a row; one
 * without a family where there is none, or where the address is the caller's own. What leads
 * nowhere (blackhole and such) has the type RTN_UNREACHABLE, the address's full prefix and no
 * protocol. */
int rcn_routes_to(const struct rcn_peer *to, uint32_t n_to, struct rcn_route *found);

/* One notification; `nsid` -1: of the caller's own namespace. `index` is the link's, for netconf -1
 * (all links), for RTM_NEWNSID and RTM_DELNSID the id. `address` and `prefix` are those of a route
 * or a neighbour; of a bridge's table (AF_BRIDGE) it is the MAC. */
struct rcn_event {
    int32_t nsid;
    int32_t index;
    uint16_t type; /* RTM_NEWLINK, ... */
    uint8_t family;
    uint8_t prefix;
    char name[16]; /* of a link */
    uint8_t address[16];
};

/* A socket that hears the caller's namespace and all that have an id in it (needs
 * CAP_NET_BROADCAST); `room` bytes of the kernel's memory hold what was not read yet. */
int rcn_events_open(uint32_t room);
/* Take what is there, without waiting; to be called again while *count is not 0. *lost: the kernel
 * had to drop some, and everything is to be looked at. `room` is at least 4,096. */
int rcn_events_read(int fd, struct rcn_event *events, uint32_t room, uint32_t *count,
                    uint32_t *lost);
/* Read one datagram; what the fuzzer calls. Answers with the number of events. */
uint32_t rcn_events_parse(const char *data, size_t size, int32_t nsid, struct rcn_event *events,
                          uint32_t room);
/* The id that the namespace at `path` has in the caller's, given where it had none. */
int rcn_nsid(const char *path);
/* The same, but -1 where it has none. */
int rcn_nsid_of(const char *path);

/* A published run of ports. Port numbers are in the machine's own byte order. */
struct rcn_published {
    struct rcn_peer host;   /* its address is zero where any_host is set */
    struct rcn_peer target; /* where has_target is set: what leads there is not stale */
    uint8_t protocol;       /* IPPROTO_TCP, ... */
    uint8_t any_host;       /* published on every address of the host of that family */
    uint8_t has_target;
    uint8_t unused;
    uint16_t target_port; /* of `first`; the others follow */
    uint16_t first;
    uint16_t last;
};

struct rcn_forgotten {
    uint32_t dumps;   /* of the whole table */
    uint32_t seen;    /* entries of the last dump */
    uint32_t deleted; /* of these */
    uint32_t failed;
    int32_t error; /* a positive errno of the last deletion that failed */
};

/* Delete the entries of conntrack that have one of `peers` (sorted as memcmp sorts them) at either
 * end in either direction, and those whose original destination is published by `ports` and that do
 * not lead to the run's target. An entry that went by itself meanwhile is no error. Where the
 * kernel remembers nothing, or lacks conntrack or ctnetlink, nothing is asked or loaded. */
int rcn_conntrack_forget(const struct rcn_peer *peers, uint32_t n_peers,
                         const struct rcn_published *ports, uint32_t n_ports,
                         struct rcn_forgotten *result);
