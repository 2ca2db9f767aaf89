/* Netlink sockets, network namespaces and sysctls: what the other files stand on. */
#ifndef RCN_SOCKET_H
#define RCN_SOCKET_H

#include "message.h"

#define RCN_TEXT 128

/* A route socket in the calling thread's namespace with extended acks and strict dumps, or -errno.
 */
int rcn_socket_open(void);
/* The same of another netlink protocol. */
int rcn_socket_open_for(int protocol);
/* SO_NETNS_COOKIE of a socket, 0 where the kernel has none. */
uint64_t rcn_socket_cookie(int fd);

/* Send all messages of the buffer in one datagram and wait for the last one's ack. Answers 0 or the
 * first error as a negative errno, with the number of its message in *failed and the kernel's text.
 */
int rcn_send(int fd, struct rcn_buffer *buffer, uint32_t *failed, char text[RCN_TEXT]);

/* What reads one message of a dump: 0 or -errno. */
typedef int rcn_reader(void *into, uint16_t type, const char *data, size_t size);

/* Read one datagram of the dump with that sequence number. Answers 1 where the dump is over, 0
 * where more follows, -EINTR where it is torn, or the error that the kernel or `read` answers with.
 */
int rcn_walk(const char *data, size_t size, uint32_t sequence, rcn_reader *read, void *into);

/* The thread's own procfs, attached nowhere: entries of all namespaces hang in one dentry chain,
 * which a fresh instance every 64 namespaces keeps short. */
struct rcn_procfs {
    int fd; /* -1: none yet */
    unsigned used;
};

void rcn_procfs_close(struct rcn_procfs *proc);
/* Open `sys/NAME` for the thread's present namespace; -errno. Dots part the name unless it holds a
 * slash. */
int rcn_sysctl_open(struct rcn_procfs *proc, const char *name, int flags);
/* To be called for each namespace that is entered. */
void rcn_procfs_renew(struct rcn_procfs *proc);

#endif
