/* One step of a job as netlink messages. */
#ifndef RCN_STEP_H
#define RCN_STEP_H

#include "message.h"
#include "rtnl_api.h"

/* Append the messages of `step` to the buffer. `index` is the number of the link it names (0: the
 * step names none), `netns` a descriptor of the job's namespace (for RCN_VETH). Answers how many
 * messages were added, or -EINVAL for a kind that is no message. */
int rcn_step_messages(struct rcn_buffer *buffer, const struct rcn_step *step, int index, int netns);

#endif
