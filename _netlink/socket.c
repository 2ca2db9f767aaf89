/* Netlink sockets, network namespaces and sysctls. */
#define _GNU_SOURCE
#include "socket.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif
#define PROCFS_USES 64
#define RECEIVE 16384

int rcn_socket_open_for(int protocol)
{
    int on = 1;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);

    if (fd < 0)
        return -errno;
    /* Older kernels lack one or the other; all but the texts works without. */
    (void)setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
    (void)setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
    (void)setsockopt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof on);
    return fd;
}

int rcn_socket_open(void)
{
    return rcn_socket_open_for(NETLINK_ROUTE);
}

uint64_t rcn_socket_cookie(int fd)
{
    uint64_t cookie = 0;
    socklen_t size = sizeof cookie;

    if (getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size))
        return 0;
    return cookie;
}

static void kernel_text(const struct nlmsghdr *header, char text[RCN_TEXT])
{
    const struct nlmsgerr *reply = NLMSG_DATA(header);
    size_t skip = NLMSG_HDRLEN + sizeof *reply;

    if (!(header->nlmsg_flags & NLM_F_ACK_TLVS))
        return;
    if (!(header->nlmsg_flags & NLM_F_CAPPED) && reply->msg.nlmsg_len > NLMSG_HDRLEN)
        skip += NLMSG_ALIGN(reply->msg.nlmsg_len - NLMSG_HDRLEN);
    if (skip > header->nlmsg_len)
        return;
    struct rcn_attributes all = {(const char *)header + skip, header->nlmsg_len - skip};
    struct rcn_attribute one;
    while (rcn_next(&all, &one))
        if (one.type == NLMSGERR_ATTR_MSG) {
            rcn_copy(text, RCN_TEXT, &one);
            text[RCN_TEXT - 1] = 0;
        }
}

/* Number the messages from 1 and ask for an ack of the last: an error is always answered. */
static uint32_t number(struct rcn_buffer *buffer)
{
    uint32_t last = 0;
    struct nlmsghdr *header = NULL;

    for (size_t at = 0; at < buffer->used; at += NLMSG_ALIGN(header->nlmsg_len)) {
        header = (struct nlmsghdr *)(buffer->data + at);
        header->nlmsg_seq = ++last;
    }
    if (header)
        header->nlmsg_flags |= NLM_F_ACK;
    return last;
}

int rcn_send(int fd, struct rcn_buffer *buffer, uint32_t *failed, char text[RCN_TEXT])
{
    _Alignas(NLMSG_ALIGNTO) char reply[RECEIVE];
    int error = 0;

    if (buffer->full)
        return -EMSGSIZE;
    if (!buffer->used)
        return 0;
    uint32_t last = number(buffer);
    ssize_t sent;
    do
        sent = send(fd, buffer->data, buffer->used, 0);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return -errno;
    for (;;) {
        ssize_t got = recv(fd, reply, sizeof reply, 0);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        size_t left = (size_t)got;
        for (const char *at = reply; left >= NLMSG_HDRLEN;) {
            const struct nlmsghdr *header = (const struct nlmsghdr *)at;
            if (header->nlmsg_len < NLMSG_HDRLEN || header->nlmsg_len > left)
                break;
            if (header->nlmsg_type == NLMSG_ERROR &&
                header->nlmsg_len >= NLMSG_HDRLEN + sizeof(struct nlmsgerr)) {
                const struct nlmsgerr *answer = NLMSG_DATA(header);
                if (answer->error && !error) {
                    error = answer->error;
                    *failed = header->nlmsg_seq - 1;
                    kernel_text(header, text);
                }
                if (header->nlmsg_seq == last)
                    return error;
            }
            size_t step = NLMSG_ALIGN(header->nlmsg_len);
            if (step > left)
                step = left;
            at += step;
            left -= step;
        }
    }
}

int rcn_walk(const char *data, size_t size, uint32_t sequence, rcn_reader *read, void *into)
{
    int error = 0;

    while (size >= NLMSG_HDRLEN) {
        struct nlmsghdr header;
        memcpy(&header, data, sizeof header);
        if (header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > size)
            return -EBADMSG;
        const char *body = data + NLMSG_HDRLEN;
        size_t length = header.nlmsg_len - NLMSG_HDRLEN;
        if (header.nlmsg_seq == sequence) {
            /* A dump that was interrupted is torn: nothing may be concluded from it. */
            if (header.nlmsg_flags & NLM_F_DUMP_INTR)
                return -EINTR;
            if (header.nlmsg_type == NLMSG_DONE) {
                if (length >= sizeof error)
                    memcpy(&error, body, sizeof error);
                return error < 0 ? error : 1;
            }
            if (header.nlmsg_type == NLMSG_ERROR) {
                if (length < sizeof error)
                    return -EBADMSG;
                memcpy(&error, body, sizeof error);
                return error < 0 ? error : -EBADMSG;
            }
            error = read(into, header.nlmsg_type, body, length);
            if (error)
                return error;
        }
        size_t step = NLMSG_ALIGN(header.nlmsg_len);
        if (step > size)
            step = size;
        data += step;
        size -= step;
    }
    return 0;
}

void rcn_procfs_close(struct rcn_procfs *proc)
{
    if (proc->fd >= 0)
        close(proc->fd);
    proc->fd = -1;
    proc->used = 0;
}

void rcn_procfs_renew(struct rcn_procfs *proc)
{
    if (++proc->used >= PROCFS_USES)
        rcn_procfs_close(proc);
}

static int mount_procfs(void)
{
    int context = (int)syscall(SYS_fsopen, "proc", FSOPEN_CLOEXEC);
    int fd = -1;

    if (context < 0)
        return -1;
    if (!syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
        fd = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
    close(context);
    return fd;
}

int rcn_sysctl_open(struct rcn_procfs *proc, const char *name, int flags)
{
    char path[512] = "sys/";
    size_t size = strlen(name);

    if (!size || size > sizeof path - 5 || strstr(name, ".."))
        return -EINVAL;
    memcpy(path + 4, name, size + 1);
    if (!strchr(name, '/'))
        for (char *at = path + 4; *at; at++)
            if (*at == '.')
                *at = '/';
    if (proc->fd < 0)
        proc->fd = mount_procfs();
    if (proc->fd < 0) /* a kernel before 5.2, or a filter on system calls */
        proc->fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (proc->fd < 0)
        return -errno;
    int fd = openat(proc->fd, path, flags | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 ? -errno : fd;
}
