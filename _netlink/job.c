/* Jobs: the steps of many containers, carried out by threads of our own.
 *
 * The caller's thread never changes its namespace. The worker opens its host socket before it
 * first leaves, and dies with whatever namespace it was in last.
 *
 *   job      = step step step | step step | step ...
 *   segment  = consecutive steps of one side (host or inside): one sendmsg, one ack
 *
 * To make a namespace costs about as much as the links of a container do, and the kernel does both
 * at once: a second thread, the preparer, makes namespaces a few jobs ahead.
 *
 *   preparer  | make 1, lo up | make 2, lo up | make 3 ...
 *   worker                    | veth 1, eth0 1, bind 1 | veth 2 ...
 */
#define _GNU_SOURCE
#include "rtnl_api.h"
#include "socket.h"
#include "step.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LEAD 16          /* namespaces that may be ready and not yet used */
#define MAX_MESSAGES 512 /* in a segment */
#define RETRY_NS 2000000000LL
#define PAUSE_NS 10000000L
#define OUR_NETNS "/proc/thread-self/ns/net"

/* A namespace on its way from the preparer to the worker. */
struct space {
    int netns;     /* descriptor, or -1 */
    int inside;    /* socket, or -1 */
    int error;     /* 0 or a negative errno; the job's result says more */
    uint32_t done; /* steps that are carried out */
};

struct work {
    const struct rcn_job *jobs;
    uint32_t n_jobs;
    const struct rcn_step *steps;
    struct rcn_result *results;
    struct space *spaces; /* one a job */
    bool ahead;           /* the preparer runs */
    sem_t ready;
    sem_t room;
    int error;
    long long deadline_ns; /* until when names and numbers of dying links are waited for */
};

enum place { AT_HOST, AT_JOB, ELSEWHERE };

struct worker {
    struct work *work;
    int host;    /* socket in the caller's namespace */
    int host_ns; /* descriptor of the caller's namespace */
    enum place place;
    int inside; /* socket in the job's namespace, or -1 */
    int netns;  /* descriptor of the job's namespace, or -1 */
    struct rcn_procfs proc;
    struct rcn_buffer buffer;
    uint32_t owner[MAX_MESSAGES]; /* message → step */
    uint32_t messages;
    char known[16]; /* the link looked up last on this side */
    int known_index;
};

static long long now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void start_segment(struct worker *w)
{
    w->buffer.used = 0;
    w->buffer.full = false;
    w->buffer.header = NULL;
    w->messages = 0;
}

static int flush(struct worker *w, bool inside, struct rcn_result *result)
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
static int look_up(struct worker *w, bool inside, const char *name)
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

static int write_sysctl(struct worker *w, const struct rcn_step *step)
{
    size_t name = strnlen(step->text, sizeof step->text);

    if (name + 1 >= sizeof step->text)
        return -EINVAL;
    const char *value = step->text + name + 1;
    size_t size = strnlen(value, sizeof step->text - name - 1);
    enum place wanted = step->inside ? AT_JOB : AT_HOST;
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

static int fail(struct rcn_result *result, uint32_t step, int error)
{
    result->error = -error;
    result->step = (int32_t)step;
    return error;
}

/* A veth pair is a segment of its own, and is tried again for a while: host ends of namespaces that
 * are dying keep their names and numbers for a moment. */
static int make_veth(struct worker *w, const struct rcn_step *step, uint32_t number,
                     struct rcn_result *result)
{
    for (;;) {
        int added = rcn_step_messages(&w->buffer, step, step->index, w->netns);
        for (int i = 0; i < added; i++)
            w->owner[w->messages++] = number;
        int error = flush(w, false, result);
        if ((error != -EEXIST && error != -EBUSY) || now_ns() > w->work->deadline_ns)
            return error;
        result->error = 0;
        result->text[0] = 0;
        struct timespec pause = {0, PAUSE_NS};
        nanosleep(&pause, NULL);
    }
}

/* Steps `first` to `end` of the job. */
static int run_steps(struct worker *w, const struct rcn_job *job, uint32_t first, uint32_t end,
                     struct rcn_result *result)
{
    bool side = false;
    int error = 0;

    start_segment(w);
    w->known_index = 0;
    for (uint32_t i = first; i < end; i++) {
        const struct rcn_step *step = &w->work->steps[job->first + i];
        bool alone = step->kind == RCN_VETH || step->kind == RCN_SYSCTL;
        bool by_name = needs_link(step) && !step->index && step->link[0];

        if (step->inside && job->mode == RCN_HOST)
            return fail(result, i, -EINVAL);
        if (step->inside != side || alone || (by_name && w->buffer.used) ||
            w->messages + 2 > MAX_MESSAGES || w->buffer.used > RCN_BUFFER / 2) {
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
                return fail(result, i, error);
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
                return fail(result, i, index);
        }
        int added = rcn_step_messages(&w->buffer, step, index, w->netns);
        if (added < 0)
            return fail(result, i, added);
        while (added-- > 0)
            w->owner[w->messages++] = i;
        if (step->kind == RCN_LINK && step->set & RCN_SET_NAME)
            w->known_index = 0;
    }
    return flush(w, side, result);
}

/* Where a job acts: a fresh namespace, or the one at its path. */
static int enter(struct worker *w, const struct rcn_job *job)
{
    rcn_procfs_renew(&w->proc);
    if (job->mode == RCN_CREATE) {
        if (unshare(CLONE_NEWNET))
            return -errno;
        w->place = AT_JOB;
        w->netns = open(OUR_NETNS, O_RDONLY | O_CLOEXEC);
    } else {
        w->netns = open(job->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    }
    if (w->netns < 0)
        return -errno;
    if (job->mode == RCN_ENTER) {
        if (setns(w->netns, CLONE_NEWNET))
            return -errno;
        w->place = AT_JOB;
    }
    w->inside = rcn_socket_open();
    return w->inside < 0 ? w->inside : 0;
}

/* Enter, and carry out the first steps as long as they are inside. The namespace stays open. */
static void prepare(struct worker *w, uint32_t number)
{
    const struct rcn_job *job = &w->work->jobs[number];
    struct rcn_result *result = &w->work->results[number];
    struct space *space = &w->work->spaces[number];

    memset(result, 0, sizeof *result);
    w->inside = w->netns = -1;
    space->done = 0;
    space->error = enter(w, job);
    /* A path of a process may lead elsewhere by now. */
    if (!space->error && job->cookie && job->cookie != rcn_socket_cookie(w->inside))
        space->error = -ESTALE;
    if (space->error) {
        fail(result, 0, space->error);
        result->step = -1;
    } else {
        result->cookie = rcn_socket_cookie(w->inside);
        while (space->done < job->count && w->work->steps[job->first + space->done].inside)
            space->done++;
        space->error = run_steps(w, job, 0, space->done, result);
    }
    space->netns = w->netns;
    space->inside = w->inside;
}

static int bind_space(struct worker *w, const struct rcn_job *job, struct rcn_result *result)
{
    char source[64];

    snprintf(source, sizeof source, "/proc/thread-self/fd/%d", w->netns);
    int error = rcn_bind(source, job->path);
    if (error) {
        result->error = -error;
        result->step = -2;
    }
    return error;
}

static void run_job(struct worker *w, uint32_t number)
{
    struct work *work = w->work;
    const struct rcn_job *job = &work->jobs[number];
    struct rcn_result *result = &work->results[number];
    struct space *space = &work->spaces[number];
    bool ahead = work->ahead && job->mode == RCN_CREATE;

    if (w->place == AT_JOB)
        w->place = ELSEWHERE;
    if (job->mode == RCN_HOST) {
        memset(result, 0, sizeof *result);
        w->inside = w->netns = -1;
        (void)run_steps(w, job, 0, job->count, result);
        return;
    }
    if (ahead) {
        while (sem_wait(&work->ready))
            ;
        w->netns = space->netns;
        w->inside = space->inside;
    } else {
        prepare(w, number);
    }
    int error = space->error;
    if (!error)
        error = run_steps(w, job, space->done, job->count, result);
    if (!error && job->mode == RCN_CREATE)
        (void)bind_space(w, job, result);
    if (w->inside >= 0)
        close(w->inside);
    if (w->netns >= 0)
        close(w->netns);
    if (ahead)
        sem_post(&work->room);
}

static struct worker *worker_new(struct work *work)
{
    struct worker *w = calloc(1, sizeof *w);

    if (!w)
        return NULL;
    w->work = work;
    w->proc.fd = -1;
    w->host = rcn_socket_open();
    w->host_ns = open(OUR_NETNS, O_RDONLY | O_CLOEXEC);
    return w;
}

static void worker_free(struct worker *w)
{
    rcn_procfs_close(&w->proc);
    if (w->host >= 0)
        close(w->host);
    if (w->host_ns >= 0)
        close(w->host_ns);
    free(w);
}

static void *prepare_all(void *argument)
{
    struct worker *w = argument;
    struct work *work = w->work;

    for (uint32_t i = 0; i < work->n_jobs; i++) {
        if (work->jobs[i].mode != RCN_CREATE)
            continue;
        while (sem_wait(&work->room))
            ;
        prepare(w, i);
        sem_post(&work->ready);
    }
    worker_free(w);
    return NULL;
}

static void *work_off(void *argument)
{
    struct work *work = argument;
    struct worker *w = worker_new(work);
    struct worker *preparer = NULL;
    uint32_t fresh = 0;
    pthread_t id;

    if (!w || w->host < 0 || w->host_ns < 0) {
        work->error = !w ? -ENOMEM : w->host < 0 ? w->host : -EMFILE;
        if (w)
            worker_free(w);
        return NULL;
    }
    for (uint32_t i = 0; i < work->n_jobs; i++)
        fresh += work->jobs[i].mode == RCN_CREATE;
    if (fresh > 1)
        preparer = worker_new(work);
    /* Set before the thread starts: it is read by both. */
    work->ahead = preparer != NULL;
    if (preparer && pthread_create(&id, NULL, prepare_all, preparer)) {
        work->ahead = false;
        worker_free(preparer);
    }
    for (uint32_t i = 0; i < work->n_jobs; i++)
        run_job(w, i);
    if (work->ahead)
        pthread_join(id, NULL);
    worker_free(w);
    return NULL;
}

int rcn_run(const struct rcn_job *jobs, uint32_t n_jobs, const struct rcn_step *steps,
            struct rcn_result *results)
{
    struct work work = {.jobs = jobs, .n_jobs = n_jobs, .steps = steps, .results = results};
    pthread_t id;

    if (!n_jobs)
        return 0;
    work.spaces = calloc(n_jobs, sizeof *work.spaces);
    if (!work.spaces)
        return -ENOMEM;
    sem_init(&work.ready, 0, 0);
    sem_init(&work.room, 0, LEAD);
    work.deadline_ns = now_ns() + RETRY_NS;
    int error = -pthread_create(&id, NULL, work_off, &work);
    if (!error) {
        pthread_join(id, NULL);
        error = work.error;
    }
    sem_destroy(&work.ready);
    sem_destroy(&work.room);
    free(work.spaces);
    return error;
}
