/* What must be paid at least for looking and for removing, by one thread.
 *
 *   probe scan NETNS_DIR        links, addresses and routes of every namespace there, then the
 *                               host's links
 *   probe reap NETNS_DIR LEFT   unmount all of them, and wait until the host has so few links
 *
 * Prints seconds. Shares no code with the project's own C layer. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char in[262144];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Answers how many messages came. */
static int dump(int fd, int type)
{
    struct {
        struct nlmsghdr header;
        union {
            struct rtgenmsg any;
            struct ifinfomsg link;
        } body;
        struct rtattr mask;
        unsigned value;
    } ask;
    int count = 0;

    memset(&ask, 0, sizeof ask);
    ask.header.nlmsg_len = type == RTM_GETLINK ? sizeof ask : NLMSG_LENGTH(sizeof ask.body);
    ask.header.nlmsg_type = (unsigned short)type;
    ask.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    ask.mask.rta_len = RTA_LENGTH(4);
    ask.mask.rta_type = 29; /* IFLA_EXT_MASK */
    ask.value = 8;          /* RTEXT_FILTER_SKIP_STATS */
    if (send(fd, &ask, ask.header.nlmsg_len, 0) < 0)
        die("send");
    for (;;) {
        ssize_t got = recv(fd, in, sizeof in, 0);
        if (got < 0)
            die("recv");
        size_t left = (size_t)got;
        for (struct nlmsghdr *h = (struct nlmsghdr *)in; NLMSG_OK(h, left);
             h = NLMSG_NEXT(h, left)) {
            if (h->nlmsg_type == NLMSG_DONE || h->nlmsg_type == NLMSG_ERROR)
                return count;
            count++;
        }
    }
}

int main(int argc, char **argv)
{
    struct timespec start, stop;
    char path[4096];
    struct dirent *entry;

    if (argc < 3 || (!strcmp(argv[1], "reap") && argc != 4)) {
        fprintf(stderr, "probe scan NETNS_DIR | reap NETNS_DIR LEFT\n");
        return 64;
    }
    int scan = !strcmp(argv[1], "scan");
    int left = scan ? 0 : atoi(argv[3]);
    clock_gettime(CLOCK_MONOTONIC, &start);
    int host = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    DIR *folder = opendir(argv[2]);
    if (host < 0 || !folder)
        die(argv[2]);
    while ((entry = readdir(folder))) {
        if (entry->d_name[0] == '.' || !strcmp(entry->d_name, "internet"))
            continue;
        snprintf(path, sizeof path, "%s/%s", argv[2], entry->d_name);
        if (!scan) {
            if (umount2(path, MNT_DETACH) || unlink(path))
                die(path);
            continue;
        }
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || setns(fd, CLONE_NEWNET))
            die(path);
        close(fd);
        int inside = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
        dump(inside, RTM_GETLINK);
        dump(inside, RTM_GETADDR);
        dump(inside, RTM_GETROUTE);
        close(inside);
    }
    closedir(folder);
    /* Each namespace takes one link of the host with it; they go in batches. */
    while (dump(host, RTM_GETLINK) > left && !scan)
        usleep(10000);
    clock_gettime(CLOCK_MONOTONIC, &stop);
    printf("%.6f\n",
           (double)(stop.tv_sec - start.tv_sec) + (double)(stop.tv_nsec - start.tv_nsec) / 1e9);
    return 0;
}
