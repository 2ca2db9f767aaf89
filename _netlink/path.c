/* Paths of namespaces: binding, unbinding, and the folder as a shared mount. */
#define _GNU_SOURCE
#include "rtnl_api.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

/* Make the mount point: an empty file of mode 000, which no runtime can take for a namespace. One
 * that a crash left is used again. */
static int make_point(const char *path)
{
    struct stat found;
    int fd = open(path, O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0);

    if (fd >= 0) {
        close(fd);
        return 0;
    }
    if (errno != EEXIST)
        return -errno;
    if (lstat(path, &found))
        return -errno;
    if (S_ISREG(found.st_mode) && !found.st_size && !(found.st_mode & 07777))
        return 0;
    return -EEXIST;
}

int rcn_bind(const char *source, const char *path)
{
    int error = make_point(path);

    if (error)
        return error;
    if (mount(source, path, NULL, MS_BIND, NULL)) {
        error = -errno;
        unlink(path);
    }
    return error;
}

int rcn_unbind(const char *path)
{
    /* EINVAL: nothing is mounted there, only the mount point is left. */
    if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) && errno != EINVAL)
        return errno == ENOENT ? 0 : -errno;
    if (unlink(path) && errno != ENOENT)
        return -errno;
    return 0;
}

int rcn_share(const char *directory)
{
    if (!mount(NULL, directory, NULL, MS_SHARED, NULL))
        return 0;
    if (errno != EINVAL) /* it is no mount point yet */
        return -errno;
    if (mount(directory, directory, NULL, MS_BIND | MS_REC, NULL))
        return -errno;
    if (mount(NULL, directory, NULL, MS_SHARED, NULL))
        return -errno;
    return 0;
}
