/* Jobs: the steps of many containers, carried out by threads of our own.
 *
 * The caller's thread never changes its namespace. The worker opens its host socket before it
 * first leaves, and dies with whatever namespace it was in last.
 *
 * To make a namespace costs about as much as the links of a container do, and the kernel does both
 * at once: a second thread, the preparer, makes namespaces a few jobs ahead.
 *
 *   preparer  | make 1, lo up | make 2, lo up | make 3 ...
 *   worker                    | veth 1, eth0 1, bind 1 | veth 2 ...
 */
#define _GNU_SOURCE
#include "rtnl_api.h"
#include "segment.h"
#include "socket.h"

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

#define LEAD 16 /* namespaces that may be ready and not yet used */
#define RETRY_NS 2000000000LL
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

/* One thread at work. */
struct hand {
    struct work *work;
    struct rcn_worker worker;
};

/* Where a job acts: a fresh namespace, or the one at its path. */
static int enter(struct rcn_worker *w, const struct rcn_job *job)
{
    rcn_procfs_renew(&w->proc);
    if (job->mode == RCN_CREATE) {
        if (unshare(CLONE_NEWNET))
            return -errno;
        w->place = RCN_AT_JOB;
        w->netns = open(OUR_NETNS, O_RDONLY | O_CLOEXEC);
    } else {
        w->netns = open(job->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    }
    if (w->netns < 0)
        return -errno;
    if (job->mode == RCN_ENTER) {
        if (setns(w->netns, CLONE_NEWNET))
            return -errno;
        w->place = RCN_AT_JOB;
    }
    w->inside = rcn_socket_open();
    return w->inside < 0 ? w->inside : 0;
}

/* Enter, and carry out the first steps as long as they are inside. The namespace stays open. */
static void prepare(struct hand *hand, uint32_t number)
{
    struct rcn_worker *w = &hand->worker;
    struct work *work = hand->work;
    const struct rcn_job *job = &work->jobs[number];
    struct rcn_result *result = &work->results[number];
    struct space *space = &work->spaces[number];

    memset(result, 0, sizeof *result);
    w->inside = w->netns = -1;
    space->done = 0;
    space->error = enter(w, job);
    /* A path of a process may lead elsewhere by now. */
    if (!space->error && job->cookie && job->cookie != rcn_socket_cookie(w->inside))
        space->error = -ESTALE;
    if (space->error) {
        rcn_fail(result, 0, space->error);
        result->step = -1;
    } else {
        result->cookie = rcn_socket_cookie(w->inside);
        while (space->done < job->count && w->steps[job->first + space->done].inside)
            space->done++;
        space->error = rcn_run_steps(w, job, 0, space->done, result);
    }
    space->netns = w->netns;
    space->inside = w->inside;
}

static int bind_space(struct rcn_worker *w, const struct rcn_job *job, struct rcn_result *result)
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

static void run_job(struct hand *hand, uint32_t number)
{
    struct rcn_worker *w = &hand->worker;
    struct work *work = hand->work;
    const struct rcn_job *job = &work->jobs[number];
    struct rcn_result *result = &work->results[number];
    struct space *space = &work->spaces[number];
    bool ahead = work->ahead && job->mode == RCN_CREATE;

    if (w->place == RCN_AT_JOB)
        w->place = RCN_ELSEWHERE;
    if (job->mode == RCN_HOST) {
        memset(result, 0, sizeof *result);
        w->inside = w->netns = -1;
        (void)rcn_run_steps(w, job, 0, job->count, result);
        return;
    }
    if (ahead) {
        while (sem_wait(&work->ready))
            ;
        w->netns = space->netns;
        w->inside = space->inside;
    } else {
        prepare(hand, number);
    }
    int error = space->error;
    if (!error)
        error = rcn_run_steps(w, job, space->done, job->count, result);
    if (!error && job->mode == RCN_CREATE)
        (void)bind_space(w, job, result);
    if (w->inside >= 0)
        close(w->inside);
    if (w->netns >= 0)
        close(w->netns);
    if (ahead)
        sem_post(&work->room);
}

static struct hand *hand_new(struct work *work)
{
    struct hand *hand = calloc(1, sizeof *hand);

    if (!hand)
        return NULL;
    hand->work = work;
    hand->worker.steps = work->steps;
    hand->worker.deadline_ns = &work->deadline_ns;
    hand->worker.proc.fd = -1;
    hand->worker.host = rcn_socket_open();
    hand->worker.host_ns = open(OUR_NETNS, O_RDONLY | O_CLOEXEC);
    return hand;
}

static void hand_free(struct hand *hand)
{
    rcn_procfs_close(&hand->worker.proc);
    if (hand->worker.host >= 0)
        close(hand->worker.host);
    if (hand->worker.host_ns >= 0)
        close(hand->worker.host_ns);
    free(hand);
}

static void *prepare_all(void *argument)
{
    struct hand *hand = argument;
    struct work *work = hand->work;

    for (uint32_t i = 0; i < work->n_jobs; i++) {
        if (work->jobs[i].mode != RCN_CREATE)
            continue;
        while (sem_wait(&work->room))
            ;
        prepare(hand, i);
        sem_post(&work->ready);
    }
    hand_free(hand);
    return NULL;
}

static void *work_off(void *argument)
{
    struct work *work = argument;
    struct hand *hand = hand_new(work);
    struct hand *preparer = NULL;
    uint32_t fresh = 0;
    pthread_t id;

    if (!hand || hand->worker.host < 0 || hand->worker.host_ns < 0) {
        work->error = !hand ? -ENOMEM : hand->worker.host < 0 ? hand->worker.host : -EMFILE;
        if (hand)
            hand_free(hand);
        return NULL;
    }
    for (uint32_t i = 0; i < work->n_jobs; i++)
        fresh += work->jobs[i].mode == RCN_CREATE;
    if (fresh > 1)
        preparer = hand_new(work);
    /* Set before the thread starts: it is read by both. */
    work->ahead = preparer != NULL;
    if (preparer && pthread_create(&id, NULL, prepare_all, preparer)) {
        work->ahead = false;
        hand_free(preparer);
    }
    for (uint32_t i = 0; i < work->n_jobs; i++)
        run_job(hand, i);
    if (work->ahead)
        pthread_join(id, NULL);
    hand_free(hand);
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
    work.deadline_ns = rcn_now_ns() + RETRY_NS;
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
