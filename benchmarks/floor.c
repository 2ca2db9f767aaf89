/* The floor: the kernel work of N containers on bridges of 1,000, by one thread over plain
 * rtnetlink.
 *
 *   floor NETNS_DIR N [routed]
 *
 * For each container: a namespace, lo up, a veth pair placed at creation with one queue each way,
 * fixed MACs, no IPv6 link-local addresses, both marks, the bridge port up, an address, a default
 * route, ping_group_range through a private procfs, and the namespace bound to NETNS_DIR/c-I. A
 * bridge is up before its first port. `routed`: no bridge, the gateway on lo, full-length prefixes,
 * host routes, permanent neighbours on both ends. Shares no code with the project's own C layer.
 * Prints seconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/mount.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static char out[16384];
static size_t used;
static struct nlmsghdr *message;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *put(const void *data, size_t size)
{
    void *place = out + used;

    if (used + NLMSG_ALIGN(size) > sizeof out)
        die("room");
    memset(place, 0, NLMSG_ALIGN(size));
    if (data)
        memcpy(place, data, size);
    used += NLMSG_ALIGN(size);
    message->nlmsg_len = (unsigned)(out + used - (char *)message);
    return place;
}

static void *begin(int type, int flags, size_t size)
{
    message = (struct nlmsghdr *)(out + used);
    memset(message, 0, NLMSG_HDRLEN);
    used += NLMSG_HDRLEN;
    message->nlmsg_type = (unsigned short)type;
    message->nlmsg_flags = (unsigned short)(NLM_F_REQUEST | flags);
    return put(NULL, size);
}

static struct rtattr *attr(int type, const void *data, size_t size)
{
    struct rtattr head = {(unsigned short)RTA_LENGTH(size), (unsigned short)type};
    struct rtattr *place = put(&head, sizeof head);

    if (size)
        put(data, size);
    return place;
}

static void attr32(int type, unsigned value)
{
    attr(type, &value, sizeof value);
}

static void end(struct rtattr *nest)
{
    nest->rta_len = (unsigned short)(out + used - (char *)nest);
}

static void go(int fd)
{
    char in[4096];

    message->nlmsg_flags |= NLM_F_ACK;
    if (send(fd, out, used, 0) < 0)
        die("send");
    used = 0;
    if (recv(fd, in, sizeof in, 0) < 0)
        die("recv");
    struct nlmsgerr *answer = NLMSG_DATA((struct nlmsghdr *)in);
    if (((struct nlmsghdr *)in)->nlmsg_type != NLMSG_ERROR || answer->error) {
        errno = -answer->error;
        die("kernel");
    }
}

static void no_link_local(void)
{
    struct rtattr *spec = attr(IFLA_AF_SPEC, NULL, 0), *inet6 = attr(AF_INET6, NULL, 0);
    unsigned char none = 1;

    attr(IFLA_INET6_ADDR_GEN_MODE, &none, 1);
    end(inet6);
    end(spec);
}

static void set_up(int index, int mode_first)
{
    struct ifinfomsg *link;

    if (mode_first) {
        link = begin(RTM_NEWLINK, 0, sizeof *link);
        link->ifi_index = index;
        no_link_local();
    }
    link = begin(RTM_NEWLINK, 0, sizeof *link);
    link->ifi_index = index;
    link->ifi_flags = link->ifi_change = IFF_UP;
}

static void make_address(int index, unsigned address, int prefix)
{
    struct ifaddrmsg *a = begin(RTM_NEWADDR, NLM_F_CREATE, sizeof *a);
    unsigned value = htonl(address), broadcast = htonl(address | (prefix == 32 ? 0 : 0xFFFF));

    a->ifa_family = AF_INET;
    a->ifa_prefixlen = (unsigned char)prefix;
    a->ifa_index = (unsigned)index;
    attr(IFA_LOCAL, &value, 4);
    attr(IFA_ADDRESS, &value, 4);
    if (prefix < 31)
        attr(IFA_BROADCAST, &broadcast, 4);
}

static void make_route(unsigned to, int prefix, unsigned via, unsigned source, int index)
{
    struct rtmsg *route = begin(RTM_NEWROUTE, NLM_F_CREATE, sizeof *route);

    to = htonl(to);
    via = htonl(via);
    source = htonl(source);
    route->rtm_family = AF_INET;
    route->rtm_dst_len = (unsigned char)prefix;
    route->rtm_table = RT_TABLE_MAIN;
    route->rtm_protocol = 0x72;
    route->rtm_type = RTN_UNICAST;
    route->rtm_scope = via ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
    if (prefix)
        attr(RTA_DST, &to, 4);
    if (via)
        attr(RTA_GATEWAY, &via, 4);
    if (source)
        attr(RTA_PREFSRC, &source, 4);
    attr32(RTA_OIF, (unsigned)index);
}

static void make_mac(unsigned char bytes[6], unsigned mac)
{
    bytes[0] = 2;
    for (int i = 0; i < 4; i++)
        bytes[i + 1] = (unsigned char)(mac >> (24 - 8 * i));
    bytes[5] = 1;
}

static void make_neighbour(unsigned address, unsigned mac, int index)
{
    struct ndmsg *entry = begin(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, sizeof *entry);
    unsigned char bytes[6];

    address = htonl(address);
    make_mac(bytes, mac);
    entry->ndm_family = AF_INET;
    entry->ndm_ifindex = index;
    entry->ndm_state = NUD_PERMANENT;
    attr(NDA_DST, &address, 4);
    attr(NDA_LLADDR, bytes, 6);
}

static void end_of_veth(const char *name, unsigned mac)
{
    unsigned char bytes[6];

    make_mac(bytes, mac);
    attr(IFLA_IFNAME, name, strlen(name) + 1);
    attr(IFLA_ADDRESS, bytes, 6);
    attr32(IFLA_MTU, 1500);
    attr32(IFLA_NUM_TX_QUEUES, 1);
    attr32(IFLA_NUM_RX_QUEUES, 1);
}

static void make_veth(int host, int netns, int number, int bridge)
{
    char name[16], alias[64];
    struct ifinfomsg *link = begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof *link);

    snprintf(name, sizeof name, "floor%d", number);
    snprintf(alias, sizeof alias, "runcnet:n/c-%d/eth0", number);
    link->ifi_index = 100000 + number;
    link->ifi_flags = link->ifi_change = IFF_UP;
    end_of_veth(name, 0x10000000u + (unsigned)number);
    if (bridge)
        attr32(IFLA_MASTER, (unsigned)bridge);
    struct rtattr *info = attr(IFLA_LINKINFO, NULL, 0);
    attr(IFLA_INFO_KIND, "veth", 5);
    struct rtattr *data = attr(IFLA_INFO_DATA, NULL, 0), *peer = attr(VETH_INFO_PEER, NULL, 0);
    struct ifinfomsg *inner = put(NULL, sizeof *inner);
    inner->ifi_index = 2;
    end_of_veth("eth0", 0x20000000u + (unsigned)number);
    attr32(IFLA_NET_NS_FD, (unsigned)netns);
    end(peer);
    end(data);
    end(info);
    link = begin(RTM_NEWLINK, 0, sizeof *link);
    link->ifi_index = 100000 + number;
    attr(IFLA_IFALIAS, alias, strlen(alias) + 1);
    no_link_local();
    go(host);
}

#define GATEWAY 0x0A000001u
#define PER_BRIDGE 1000

static void make_inside(int number, unsigned gateway, unsigned address, int routed)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    char alias[64];
    struct ifinfomsg *lo = begin(RTM_NEWLINK, 0, sizeof *lo);

    if (fd < 0)
        die("socket");
    lo->ifi_index = 1;
    lo->ifi_flags = lo->ifi_change = IFF_UP;
    snprintf(alias, sizeof alias, "runcnet:c-%d", number);
    attr(IFLA_IFALIAS, alias, strlen(alias) + 1);
    set_up(2, 1);
    make_address(2, address, routed ? 32 : 16);
    if (routed)
        make_route(gateway, 32, 0, 0, 2);
    make_route(0, 0, gateway, 0, 2);
    if (routed)
        make_neighbour(gateway, 0x10000000u + (unsigned)number, 2);
    go(fd);
    close(fd);
}

static void ping_groups(int number)
{
    static int proc = -1;
    static const char value[] = "0 2147483647";

    if (proc < 0 || number % 64 == 0) {
        if (proc >= 0)
            close(proc);
        int context = (int)syscall(SYS_fsopen, "proc", 0);
        syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
        proc = (int)syscall(SYS_fsmount, context, 0, 0);
        close(context);
    }
    int fd = openat(proc, "sys/net/ipv4/ping_group_range", O_WRONLY);
    if (fd < 0 || write(fd, value, sizeof value - 1) < 0)
        die("ping_group_range");
    close(fd);
}

static int make_bridge(int host, int number)
{
    unsigned char mac[6] = {2, 0, 0, 0, (unsigned char)number, 9};
    char name[16];
    int index = 99999 - number;
    struct ifinfomsg *link = begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof *link);

    snprintf(name, sizeof name, "floorbr%d", number);
    link->ifi_index = index;
    attr(IFLA_IFNAME, name, strlen(name) + 1);
    attr(IFLA_ADDRESS, mac, 6);
    struct rtattr *info = attr(IFLA_LINKINFO, NULL, 0);
    attr(IFLA_INFO_KIND, "bridge", 7);
    end(info);
    go(host);
    set_up(index, 1);
    make_address(index, GATEWAY + ((unsigned)number << 16), 16);
    go(host);
    return index;
}

int main(int argc, char **argv)
{
    struct timespec start, stop;
    char path[4096];

    if (argc < 3) {
        fprintf(stderr, "floor NETNS_DIR N [routed]\n");
        return 64;
    }
    int routed = argc > 3;
    int count = atoi(argv[2]);
    int host = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (host < 0)
        die("socket");
    clock_gettime(CLOCK_MONOTONIC, &start);
    int bridge = 0;
    if (routed) {
        make_address(1, GATEWAY, 32);
        go(host);
    }
    for (int i = 0; i < count; i++) {
        unsigned gateway = routed ? GATEWAY : GATEWAY + ((unsigned)(i / PER_BRIDGE) << 16);
        unsigned address = gateway + 1 + (unsigned)(routed ? i : i % PER_BRIDGE);
        if (!routed && i % PER_BRIDGE == 0)
            bridge = make_bridge(host, i / PER_BRIDGE);
        if (unshare(CLONE_NEWNET))
            die("unshare");
        int netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
        make_veth(host, netns, i, bridge);
        make_inside(i, gateway, address, routed);
        if (routed) {
            make_route(address, 32, 0, gateway, 100000 + i);
            make_neighbour(address, 0x20000000u + (unsigned)i, 100000 + i);
            go(host);
        }
        ping_groups(i);
        snprintf(path, sizeof path, "%s/c-%d", argv[1], i);
        int point = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0);
        if (point < 0 || mount("/proc/self/ns/net", path, NULL, MS_BIND, NULL))
            die(path);
        close(point);
        close(netns);
    }
    clock_gettime(CLOCK_MONOTONIC, &stop);
    printf("%.6f\n",
           (double)(stop.tv_sec - start.tv_sec) + (double)(stop.tv_nsec - start.tv_nsec) / 1e9);
    return 0;
}
