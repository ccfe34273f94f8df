/* A disk with a will of its own, preloaded into the daemon. Each sync waits SLOW_US microseconds, each
 * write of the log SLOW_LOG_US. While the file FAULT_FILE holds a word, calls on the journal's files
 * fail: READONLY and FULL fail writes, TABLES those of the tables, BROKEN fails syncs, UNREADABLE reads,
 * NAMELESS renames. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_named(int fd, const char *name) {
    char link[64], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return strstr(path, name) != NULL;
}

static int says(const char *word) {
    const char *file = getenv("FAULT_FILE");
    char said[16] = "";
    int control = file ? open(file, O_RDONLY) : -1;
    if (control < 0) return 0;
    ssize_t n = read(control, said, sizeof said - 1);
    close(control);
    return n > 0 && strncmp(said, word, strlen(word)) == 0;
}

static int faulty(int fd, const char *word) { return is_named(fd, "/journal.") && says(word); }

/* What is synced and renamed, in order, in FAULT_FILE.trace. */
static void trace(const char *what, const char *first, const char *second) {
    char path[512], line[1100];
    const char *file = getenv("FAULT_FILE");
    if (!file) return;
    snprintf(path, sizeof path, "%s.trace", file);
    int out = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (out < 0) return;
    int n = snprintf(line, sizeof line, "%s %s%s%s\n", what, first, second ? " " : "", second ? second : "");
    if (write(out, line, (size_t)n) < 0) abort();
    close(out);
}

static int sync_as(const char *name, int fd) {
    const char *us = getenv("SLOW_US");
    usleep(us ? (useconds_t)atoi(us) : 0);
    char link[64], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n > 0) {
        path[n] = 0;
        trace("sync", path, NULL);
    }
    if (faulty(fd, "BROKEN")) {
        errno = EIO;
        return -1;
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}

int fdatasync(int fd) { return sync_as("fdatasync", fd); }

int fsync(int fd) { return sync_as("fsync", fd); }

ssize_t pwrite64(int fd, const void *data, size_t count, off_t at) {
    const char *us = getenv("SLOW_LOG_US");
    if (us && is_named(fd, "/journal.log")) usleep((useconds_t)atoi(us));
    if (faulty(fd, "READONLY")) {
        errno = EROFS;
        return -1;
    }
    if (faulty(fd, "FULL") || (is_named(fd, "/journal.redb") && says("TABLES"))) {
        errno = ENOSPC;
        return -1;
    }
    return ((ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64"))(fd, data, count, at);
}

ssize_t pread64(int fd, void *data, size_t count, off_t at) {
    if (faulty(fd, "UNREADABLE")) {
        errno = EIO;
        return -1;
    }
    return ((ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread64"))(fd, data, count, at);
}

int rename(const char *from, const char *to) {
    trace("rename", from, to);
    if (strstr(to, "/journal.") && says("NAMELESS")) {
        errno = EIO;
        return -1;
    }
    return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
}
