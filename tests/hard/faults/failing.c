/* Calls of the C library that fail at a moment of one's choice, for LD_PRELOAD.
 *
 * Until fault_arm is called nothing differs. Then the calls of the chosen kinds that concern a file
 * below a folder are counted, and from the n-th on (or at the n-th alone) they fail with an errno,
 * or the process is killed before the call is made. What the C library calls inside of itself
 * is not seen, so fread and fwrite are here by themselves.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 1, NAME = 2, READ = 4, STAYS = 8, KILLS = 16, HALF = 32 };

static char folder[PATH_MAX];
static size_t folder_length;
static int what, error_number;
static long moment, seen;
static long clock_offset;

void fault_arm(const char *path, long nth, int error, int kinds) {
  folder_length = strlen(path);
  memcpy(folder, path, folder_length + 1);
  moment = nth;
  error_number = error;
  __atomic_store_n(&seen, 0, __ATOMIC_SEQ_CST);
  what = kinds;
}

long fault_seen(void) { return __atomic_load_n(&seen, __ATOMIC_SEQ_CST); }

/* The wall clock jumps by so many seconds; the monotonic one never does. */
void fault_clock(long seconds) { clock_offset = seconds; }

static int below(const char *path) {
  return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static int fails(int kind) {
  if (!(what & kind)) return 0;
  long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
  if (number != moment && !((what & STAYS) && moment && number > moment)) return 0;
  if (what & KILLS) kill(getpid(), SIGKILL);
  errno = error_number;
  return 1;
}

static int path_fails(int kind, const char *path) {
  return (what & kind) && path && below(path) && fails(kind);
}

static int file_fails(int kind, int descriptor) {
  if (!(what & kind)) return 0;
  char link[64], path[PATH_MAX];
  int before = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  errno = before;
  if (length < 0) return 0;
  path[length] = 0;
  return path_fails(kind, path);
}

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* A full disk takes what still fits: with HALF the failing write does a half of its bytes, and the
 * next one fails. */
static size_t part(size_t size) { return (what & HALF) ? size / 2 : 0; }

ssize_t write(int file, const void *data, size_t size) {
  if (file_fails(WRITE, file)) {
    size = part(size);
    if (!size) return -1;
  }
  return REAL(write)(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
  return file_fails(WRITE, file) ? -1 : REAL(writev)(file, parts, count);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
  return file_fails(WRITE, file) ? -1 : REAL(pwrite64)(file, data, size, at);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
  return file_fails(WRITE, file) ? -1 : REAL(pwrite)(file, data, size, at);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
  return file_fails(WRITE, fileno(file)) ? 0 : REAL(fwrite)(data, size, count, file);
}

ssize_t sendfile(int to, int from, off_t *at, size_t size) {
  if (file_fails(WRITE, to) || file_fails(READ, from)) return -1;
  return REAL(sendfile)(to, from, at, size);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
  if (file_fails(WRITE, to) || file_fails(READ, from)) return -1;
  return REAL(sendfile64)(to, from, at, size);
}

int ftruncate(int file, off_t size) {
  return file_fails(WRITE, file) ? -1 : REAL(ftruncate)(file, size);
}

int ftruncate64(int file, off64_t size) {
  return file_fails(WRITE, file) ? -1 : REAL(ftruncate64)(file, size);
}

int fsync(int file) { return file_fails(WRITE, file) ? -1 : REAL(fsync)(file); }

int rename(const char *from, const char *to) {
  return path_fails(NAME, to) ? -1 : REAL(rename)(from, to);
}

int renameat2(int at, const char *from, int to_at, const char *to, unsigned flags) {
  return path_fails(NAME, to) ? -1 : REAL(renameat2)(at, from, to_at, to, flags);
}

int mkdir(const char *path, mode_t mode) {
  return path_fails(NAME, path) ? -1 : REAL(mkdir)(path, mode);
}

static mode_t mode_of(int flags, va_list rest) {
  return (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                                        \
  int name(const char *path, int flags, ...) {                            \
    va_list rest;                                                         \
    va_start(rest, flags);                                                \
    mode_t mode = mode_of(flags, rest);                                   \
    va_end(rest);                                                         \
    if (path_fails((flags & O_CREAT) ? NAME : READ, path)) return -1;     \
    return REAL(name)(path, flags, mode);                                 \
  }
OPEN(open)
OPEN(open64)

ssize_t read(int file, void *data, size_t size) {
  return file_fails(READ, file) ? -1 : REAL(read)(file, data, size);
}

ssize_t pread(int file, void *data, size_t size, off_t at) {
  return file_fails(READ, file) ? -1 : REAL(pread)(file, data, size, at);
}

ssize_t pread64(int file, void *data, size_t size, off64_t at) {
  return file_fails(READ, file) ? -1 : REAL(pread64)(file, data, size, at);
}

size_t fread(void *data, size_t size, size_t count, FILE *file) {
  return file_fails(READ, fileno(file)) ? 0 : REAL(fread)(data, size, count, file);
}

void *mmap(void *address, size_t size, int protection, int flags, int file, off_t at) {
  if (file >= 0 && file_fails(READ, file)) return MAP_FAILED;
  return REAL(mmap)(address, size, protection, flags, file, at);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int status = REAL(clock_gettime)(clock, now);
  if (!status && clock == CLOCK_REALTIME) now->tv_sec += clock_offset;
  return status;
}

time_t time(time_t *to) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (to) *to = now.tv_sec;
  return now.tv_sec;
}
