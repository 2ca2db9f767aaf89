/* Building and reading netlink messages. Every write is bounds-checked: a buffer that is full
 * refuses all that follows and says so once, in rcn_buffer.full.
 *
 *   | nlmsghdr | family header | rtattr | payload | pad | rtattr ... |
 *   ^ header                    each attribute starts on a multiple of 4
 */
#ifndef RCN_MESSAGE_H
#define RCN_MESSAGE_H

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define RCN_BUFFER 65536
#define RCN_PROTOCOL 0x72 /* on all that the kernel lets us sign */

struct rcn_buffer {
    size_t used;
    struct nlmsghdr *header; /* of the message being built */
    bool full;
    _Alignas(NLMSG_ALIGNTO) char data[RCN_BUFFER];
};

static inline void *rcn_reserve(struct rcn_buffer *buffer, size_t size)
{
    size_t room = NLMSG_ALIGN(size);

    if (buffer->full || room > RCN_BUFFER - buffer->used) {
        buffer->full = true;
        return NULL;
    }
    void *place = buffer->data + buffer->used;
    memset(place, 0, room);
    buffer->used += room;
    if (buffer->header)
        buffer->header->nlmsg_len =
            (uint32_t)(buffer->data + buffer->used - (char *)buffer->header);
    return place;
}

/* Begin a message; answers its family header, or NULL where the buffer is full. */
static inline void *rcn_begin(struct rcn_buffer *buffer, uint16_t type, uint16_t flags, size_t size)
{
    buffer->header = NULL;
    struct nlmsghdr *header = rcn_reserve(buffer, NLMSG_HDRLEN);

    if (!header)
        return NULL;
    header->nlmsg_type = type;
    header->nlmsg_flags = NLM_F_REQUEST | flags;
    header->nlmsg_len = NLMSG_HDRLEN;
    buffer->header = header;
    return rcn_reserve(buffer, size);
}

static inline struct rtattr *rcn_put(struct rcn_buffer *buffer, uint16_t type, const void *payload,
                                     size_t size)
{
    struct rtattr *attribute = rcn_reserve(buffer, RTA_LENGTH(size));

    if (!attribute)
        return NULL;
    attribute->rta_type = type;
    attribute->rta_len = (uint16_t)RTA_LENGTH(size);
    if (size)
        memcpy(RTA_DATA(attribute), payload, size);
    return attribute;
}

static inline void rcn_put_u8(struct rcn_buffer *buffer, uint16_t type, uint8_t value)
{
    rcn_put(buffer, type, &value, sizeof value);
}

static inline void rcn_put_u32(struct rcn_buffer *buffer, uint16_t type, uint32_t value)
{
    rcn_put(buffer, type, &value, sizeof value);
}

static inline void rcn_put_text(struct rcn_buffer *buffer, uint16_t type, const char *text)
{
    rcn_put(buffer, type, text, strlen(text) + 1);
}

static inline struct rtattr *rcn_nest(struct rcn_buffer *buffer, uint16_t type)
{
    return rcn_put(buffer, type | NLA_F_NESTED, NULL, 0);
}

static inline void rcn_nest_end(struct rcn_buffer *buffer, struct rtattr *nest)
{
    if (nest && !buffer->full)
        nest->rta_len = (uint16_t)(buffer->data + buffer->used - (char *)nest);
}

/* Attributes of a reply. The kernel is trusted to mean well, its lengths are not trusted at all. */
struct rcn_attributes {
    const char *at;
    size_t left;
};

struct rcn_attribute {
    uint16_t type;
    const char *data;
    size_t size;
};

static inline bool rcn_next(struct rcn_attributes *all, struct rcn_attribute *one)
{
    struct rtattr header;

    if (all->left < sizeof header)
        return false;
    memcpy(&header, all->at, sizeof header);
    if (header.rta_len < sizeof header || header.rta_len > all->left)
        return false;
    one->type = header.rta_type & NLA_TYPE_MASK;
    one->data = all->at + RTA_LENGTH(0);
    one->size = header.rta_len - RTA_LENGTH(0);
    size_t step = RTA_ALIGN(header.rta_len);
    if (step > all->left)
        step = all->left;
    all->at += step;
    all->left -= step;
    return true;
}

static inline struct rcn_attributes rcn_inside(const struct rcn_attribute *nest)
{
    return (struct rcn_attributes){nest->data, nest->size};
}

static inline uint32_t rcn_u32(const struct rcn_attribute *one)
{
    uint32_t value = 0;

    if (one->size >= sizeof value)
        memcpy(&value, one->data, sizeof value);
    return value;
}

static inline uint8_t rcn_u8(const struct rcn_attribute *one)
{
    return one->size ? (uint8_t)one->data[0] : 0;
}

/* Copy at most `room` bytes and zero the rest. */
static inline void rcn_copy(void *to, size_t room, const struct rcn_attribute *one)
{
    size_t size = one->size < room ? one->size : room;

    memset(to, 0, room);
    if (size)
        memcpy(to, one->data, size);
}

#endif
