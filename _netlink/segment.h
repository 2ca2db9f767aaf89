/* What carries out the steps of a job: one thread's sockets, buffer and place. */
#ifndef RCN_SEGMENT_H
#define RCN_SEGMENT_H

#include "rtnl_api.h"
#include "socket.h"

#define RCN_MAX_MESSAGES 512 /* in a segment */

enum rcn_place { RCN_AT_HOST, RCN_AT_JOB, RCN_ELSEWHERE };

struct rcn_worker {
    const struct rcn_step *steps; /* of all jobs */
    const long long *deadline_ns; /* until when names and numbers of dying links are waited for */
    int host;                     /* socket in the caller's namespace */
    int host_ns;                  /* descriptor of the caller's namespace */
    enum rcn_place place;
    int inside; /* socket in the job's namespace, or -1 */
    int netns;  /* descriptor of the job's namespace, or -1 */
    struct rcn_procfs proc;
    struct rcn_buffer buffer;
    uint32_t owner[RCN_MAX_MESSAGES]; /* message → step */
    uint32_t messages;
    char known[16]; /* the link looked up last on this side */
    int known_index;
};

/* The clock of deadlines. */
long long rcn_now_ns(void);
/* Note which step failed; answers `error`, a negative errno. */
int rcn_fail(struct rcn_result *result, uint32_t step, int error);
/* Carry out steps `first` to `end` of the job: 0, or -errno with the result filled in. */
int rcn_run_steps(struct rcn_worker *w, const struct rcn_job *job, uint32_t first, uint32_t end,
                  struct rcn_result *result);

#endif
