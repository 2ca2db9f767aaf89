/* Steps of a job, as segments: consecutive ones of one side are one sendmsg and one ack.
 *
 *   job      = step step step | step step | step ...
 *   segment  = consecutive steps of one side (host or inside)
 */
#define _GNU_SOURCE
#include "segment.h"
#include "step.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <sched.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAUSE_NS 10000000L

long long rcn_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void start_segment(struct rcn_worker *w)
{
    w->buffer.used = 0;
    w->buffer.full = false;
    w->buffer.header = NULL;
    w->messages = 0;
}

static int flush(struct rcn_worker *w, bool inside, struct rcn_result *result)
{
    uint32_t failed = 0;
    int error = rcn_send(inside ? w->inside : w->host, &w->buffer, &failed, result->text);

    if (error) {
        result->error = -error;
        result->step = failed < w->messages ? (int32_t)w->owner[failed] : -1;
    }
    start_segment(w);
    return error;
}

/* The number of the link with that name on one side; -ENODEV where there is none. */
static int look_up(struct rcn_worker *w, bool inside, const char *name)
{
    struct rcn_buffer *buffer = &w->buffer;
    _Alignas(NLMSG_ALIGNTO) char reply[8192];

    if (w->known_index && !strncmp(w->known, name, sizeof w->known))
        return w->known_index;
    start_segment(w);
    rcn_begin(buffer, RTM_GETLINK, 0, sizeof(struct ifinfomsg));
    rcn_put_text(buffer, IFLA_IFNAME, name);
    int fd = inside ? w->inside : w->host;
    ssize_t got = send(fd, buffer->data, buffer->used, 0);
    start_segment(w);
    if (got < 0)
        return -errno;
    do
        got = recv(fd, reply, sizeof reply, 0);
    while (got < 0 && errno == EINTR);
    if (got < (ssize_t)(NLMSG_HDRLEN + sizeof(struct ifinfomsg)))
        return got < 0 ? -errno : -EBADMSG;
    const struct nlmsghdr *header = (const struct nlmsghdr *)reply;
    if (header->nlmsg_type == NLMSG_ERROR)
        return ((const struct nlmsgerr *)NLMSG_DATA(header))->error;
    if (header->nlmsg_type != RTM_NEWLINK)
        return -EBADMSG;
    w->known_index = ((const struct ifinfomsg *)NLMSG_DATA(header))->ifi_index;
    memcpy(w->known, name, sizeof w->known);
    return w->known_index;
}

static int write_sysctl(struct rcn_worker *w, const struct rcn_step *step)
{
    size_t name = strnlen(step->text, sizeof step->text);

    if (name + 1 >= sizeof step->text)
        return -EINVAL;
    const char *value = step->text + name + 1;
    size_t size = strnlen(value, sizeof step->text - name - 1);
    enum rcn_place wanted = step->inside ? RCN_AT_JOB : RCN_AT_HOST;
    if (w->place != wanted) {
        if (setns(step->inside ? w->netns : w->host_ns, CLONE_NEWNET))
            return -errno;
        w->place = wanted;
    }
    int fd = rcn_sysctl_open(&w->proc, step->text, O_WRONLY);
    if (fd == -ENOENT && step->set & RCN_SET_IF_THERE)
        return 0;
    if (fd < 0)
        return fd;
    ssize_t written = write(fd, value, size);
    int error = written < 0 ? -errno : (size_t)written == size ? 0 : -EIO;
    close(fd);
    return error;
}

static int needs_link(const struct rcn_step *step)
{
    return step->kind == RCN_LINK || step->kind == RCN_DELETE_LINK || step->kind == RCN_ADDRESS ||
           step->kind == RCN_ROUTE || step->kind == RCN_NEIGHBOUR;
}

int rcn_fail(struct rcn_result *result, uint32_t step, int error)
{
    result->error = -error;
    result->step = (int32_t)step;
    return error;
}

/* A veth pair is a segment of its own, and is tried again for a while: host ends of namespaces that
 * are dying keep their names and numbers for a moment. */
static int make_veth(struct rcn_worker *w, const struct rcn_step *step, uint32_t number,
                     struct rcn_result *result)
{
    for (;;) {
        int added = rcn_step_messages(&w->buffer, step, step->index, w->netns);
        for (int i = 0; i < added; i++)
            w->owner[w->messages++] = number;
        int error = flush(w, false, result);
        if ((error != -EEXIST && error != -EBUSY) || rcn_now_ns() > *w->deadline_ns)
            return error;
        result->error = 0;
        result->text[0] = 0;
        struct timespec pause = {0, PAUSE_NS};
        nanosleep(&pause, NULL);
    }
}

int rcn_run_steps(struct rcn_worker *w, const struct rcn_job *job, uint32_t first, uint32_t end,
                  struct rcn_result *result)
{
    bool side = false;
    int error = 0;

    start_segment(w);
    w->known_index = 0;
    for (uint32_t i = first; i < end; i++) {
        const struct rcn_step *step = &w->steps[job->first + i];
        bool alone = step->kind == RCN_VETH || step->kind == RCN_SYSCTL;
        bool by_name = needs_link(step) && !step->index && step->link[0];

        if (step->inside && job->mode == RCN_HOST)
            return rcn_fail(result, i, -EINVAL);
        if (step->inside != side || alone || (by_name && w->buffer.used) ||
            w->messages + 2 > RCN_MAX_MESSAGES || w->buffer.used > RCN_BUFFER / 2) {
            error = flush(w, side, result);
            if (error)
                return error;
        }
        if (step->inside != side)
            w->known_index = 0;
        side = step->inside;
        if (step->kind == RCN_SYSCTL) {
            error = write_sysctl(w, step);
            if (error)
                return rcn_fail(result, i, error);
            continue;
        }
        if (step->kind == RCN_VETH) {
            error = make_veth(w, step, i, result);
            if (error)
                return error;
            w->known_index = 0;
            continue;
        }
        int index = step->index;
        if (by_name) {
            index = look_up(w, side, step->link);
            if (index < 0)
                return rcn_fail(result, i, index);
        }
        int added = rcn_step_messages(&w->buffer, step, index, w->netns);
        if (added < 0)
            return rcn_fail(result, i, added);
        while (added-- > 0)
            w->owner[w->messages++] = i;
        if (step->kind == RCN_LINK && step->set & RCN_SET_NAME)
            w->known_index = 0;
    }
    return flush(w, side, result);
}
