/* runcnet-hook: what a runtime calls in the place of `runcnet`, for a daemon is quicker than a new
 * interpreter. It hands the call over by the daemon's socket, and says what that answers.
 *
 * config.json: "path": ".../runcnet-hook", "args": ["/usr/bin/runcnet", "hook", "createRuntime",
 * ...]. Where no daemon is, or it sends us away, args[0] is run, which does the same by itself. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    ELSEWHERE = 75,
    STATE_MAX = (1 << 20) + 1, /* one byte more than whoever reads it takes */
    PATIENCE_MS = 120 * 1000
};

static const char RUN_DIR[] = "/run/runcnet";
static const char PASSED_ON[] = "RUNCNET_HOOK_PASSED_ON";
/* What pip writes into the script `runcnet`, and the same without the search for packages, for an
 * environment in which all of them lie where this program does. */
static const char SCRIPT[] = "from reconciler.cli import entry";
static char START[] =
    "import sys; sys.path.append(sys.argv.pop(1)); from reconciler.bytecode import entry; entry()";
static const char *const NEEDED[] = {"reconciler/cli.py", "msgspec", "cffi", "yaml", "iptc",
                                     "watchdog"};

/* The value of the option --run-dir, in either of its forms. */
static const char *run_dir(int argc, char **argv)
{
    static const char option[] = "--run-dir";
    const size_t length = sizeof option - 1;
    const char *found = RUN_DIR;

    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], option, length))
            continue;
        if (argv[i][length] == '=')
            found = argv[i] + length + 1;
        else if (!argv[i][length] && i + 1 < argc)
            found = argv[i + 1];
    }
    return found;
}

static int call(const char *directory)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int length = snprintf(name.sun_path, sizeof name.sun_path, "%s/daemon.sock", directory);

    if (length < 0 || (size_t)length >= sizeof name.sun_path)
        return -1;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&name, sizeof name)) {
        close(fd);
        return -1;
    }
    return fd;
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t done = send(fd, data, size, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        data += done;
        size -= (size_t)done;
    }
    return 0;
}

/* Read to the end, or until it is full. */
static size_t read_all(int fd, char *data, size_t room)
{
    size_t used = 0;

    while (used < room) {
        ssize_t got = read(fd, data + used, room - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        used += (size_t)got;
    }
    return used;
}

/* Hand the call over; answers with the exit code. */
static int ask(int fd, int argc, char **argv, const char *state, size_t size)
{
    static char answer[(1 << 16) + 64];
    char count[16];
    int length = snprintf(count, sizeof count, "%d", argc - 1);

    if (write_all(fd, count, (size_t)length + 1))
        return ELSEWHERE;
    for (int i = 1; i < argc; i++)
        if (write_all(fd, argv[i], strlen(argv[i]) + 1))
            return ELSEWHERE;
    if (write_all(fd, state, size) || shutdown(fd, SHUT_WR))
        return ELSEWHERE;
    struct pollfd waited = {.fd = fd, .events = POLLIN};
    while (poll(&waited, 1, PATIENCE_MS) < 0 && errno == EINTR)
        ;
    if (!waited.revents) {
        fputs("runcnet-hook: the daemon does not answer (see its log)\n", stderr);
        return 1;
    }
    size_t used = read_all(fd, answer, sizeof answer - 1);
    answer[used] = 0;
    char *text = strchr(answer, '\n');
    if (!text)
        return ELSEWHERE;
    if (text[1])
        fprintf(stderr, "%s\n", text + 1);
    return atoi(answer);
}

/* What was read from stdin is there again for who comes after us. */
static int put_back(const char *state, size_t size)
{
    int fd = memfd_create("state", 0);

    if (fd < 0 || write(fd, state, size) != (ssize_t)size || lseek(fd, 0, SEEK_SET))
        return -1;
    int done = dup2(fd, STDIN_FILENO);
    if (fd != STDIN_FILENO)
        close(fd);
    return done;
}

static int same(const char *one, const char *other)
{
    struct stat first, second;

    return !stat(one, &first) && !stat(other, &second) && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

/* The folder of packages in which this program lies, if all that it needs is there, too. */
static int packages(char *path, size_t room)
{
    ssize_t size = readlink("/proc/self/exe", path, room - 1);

    if (size <= 0)
        return -1;
    path[size] = 0;
    for (int up = 0; up < 2; up++) {
        char *end = strrchr(path, '/');
        if (!end || end == path)
            return -1;
        *end = 0;
    }
    int folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int missing = folder < 0;
    for (size_t i = 0; !missing && i < sizeof NEEDED / sizeof *NEEDED; i++)
        missing = faccessat(folder, NEEDED[i], F_OK, 0);
    if (folder >= 0)
        close(folder);
    return missing ? -1 : 0;
}

/* The Python that the script `program` names in its first line: at text + 2. */
static int interpreter(const char *program, char *text, size_t room)
{
    int fd = open(program, O_RDONLY | O_CLOEXEC);
    size_t size = fd < 0 ? 0 : read_all(fd, text, room - 1);

    if (fd >= 0)
        close(fd);
    text[size] = 0;
    char *end = strchr(text, '\n');
    if (strncmp(text, "#!/", 3) || !end || !strstr(end, SCRIPT))
        return -1;
    *end = 0;
    return strpbrk(text, " \t\r") || strncmp(strrchr(text, '/'), "/python", 7) ? -1 : 0;
}

/* Whether the packages at `site` are those of the script `runcnet` and of its interpreter, as an
 * environment has them: BIN/runcnet, BIN/python, BIN/pythonX.Y, BIN/../lib/pythonX.Y/site-packages.
 */
static int one_environment(const char *program, const char *python, const char *site)
{
    char text[3 * PATH_MAX], script[PATH_MAX], lib[PATH_MAX];

    if (!realpath(program, script))
        return 0;
    *strrchr(script, '/') = 0;
    snprintf(lib, sizeof lib, "%s", site);
    char *end = strrchr(lib, '/');
    if (!end)
        return 0;
    *end = 0; /* .../lib/pythonX.Y */
    const char *version = strrchr(lib, '/');
    if (!version)
        return 0;
    snprintf(text, sizeof text, "%s/../lib%s/site-packages", script, version);
    if (!same(text, site))
        return 0;
    snprintf(text, sizeof text, "%s%s", script, version);
    if (!same(text, python))
        return 0;
    snprintf(text, sizeof text, "%s%s", script, strrchr(python, '/'));
    return same(text, python);
}

/* Run `runcnet` without what a new interpreter does first in general, where that is safe. */
static void run_at_once(int argc, char **argv)
{
    static char site[PATH_MAX], text[4096];
    char **words = calloc((size_t)argc + 6, sizeof *words);

    if (!words || interpreter(argv[0], text, sizeof text) || packages(site, sizeof site) ||
        !one_environment(argv[0], text + 2, site)) {
        free(words);
        return;
    }
    char *const first[] = {text + 2, "-I", "-S", "-c", START, site};
    memcpy(words, first, sizeof first);
    memcpy(words + sizeof first / sizeof *first, argv + 1, (size_t)argc * sizeof *words);
    execv(words[0], words);
    free(words);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fputs("runcnet-hook: to be called by a runtime, as `runcnet hook STAGE` is\n", stderr);
        return 64;
    }
    /* args[0] that is this program once more would run itself for ever. */
    if (getenv(PASSED_ON)) {
        fprintf(stderr, "runcnet-hook: %s: is runcnet-hook (args[0] is to be runcnet)\n", argv[0]);
        return 64;
    }
    int fd = call(run_dir(argc, argv));
    if (fd >= 0) {
        static char state[STATE_MAX];
        size_t size = read_all(STDIN_FILENO, state, sizeof state);
        int code = ask(fd, argc, argv, state, size);
        close(fd);
        if (code != ELSEWHERE)
            return code;
        if (put_back(state, size) < 0) {
            perror("runcnet-hook: the state cannot be passed on");
            return 1;
        }
    }
    if (setenv(PASSED_ON, "1", 1)) {
        perror("runcnet-hook");
        return 1;
    }
    if (strchr(argv[0], '/')) {
        run_at_once(argc, argv);
        execv(argv[0], argv);
    } else {
        execvp(argv[0], argv);
    }
    fprintf(stderr, "runcnet-hook: %s: %s (args[0] is the runcnet program)\n", argv[0],
            strerror(errno));
    return 1;
}
